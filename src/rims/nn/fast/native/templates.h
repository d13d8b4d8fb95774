/* Everything, for one type of number. */
#include "numbers.h"
#include "matmul.h"
#include "cells.h"
#include "rows.h"
#include "forward.h"
#include "backward.h"
