// The parts of the test, one file each.
#pragma once

void test_formats();     // the 16-bit formats, scalar and inside the kernels; sin and cos
void test_forward();     // one adapter: values, identity, transpose, memory layouts
void test_merge();       // the same op on a matrix whose rows are the features
void test_tables();      // the coefficients of all adapters
void test_divisor();     // core/divisor.h
void test_adapters();    // mixed batches, the checks of ids and of singular blocks
void test_backward();    // gradients of one adapter
void test_fused();       // the rotation and what follows it
void test_repeatable();  // bitwise equality over runs and numbers of threads
