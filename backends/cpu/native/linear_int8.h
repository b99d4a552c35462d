#pragma once

#include "linear.h"

namespace infercore::INFERCORE_ISA {

// `linear` of rows that are rounded to int8.
void linear_int8(const LinearArgs& args, int begin, int end);

}  // namespace infercore::INFERCORE_ISA
