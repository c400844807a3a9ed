// The same bits in every run, on any number of threads and in any order of the ranges.
#include "gradients.h"
#include "test_road_cpu.h"

namespace {

struct Runner {
  const char* name;
  road::cpu::Parallel parallel;
};
constexpr Runner kRunners[] = {
    {"serial again", kSerial}, {"backwards", kBackwards}, {"2 threads", kThreads2}, {"3 threads", kThreads3}};

void check(Regime& regime, Case& c, Random& random, bool from_output) {
  c.fill_parameters(random, from_output);
  Stack x = c.make_rows(), gz = c.make_rows(), z = c.make_rows();
  x.fill(random);
  gz.fill(random);
  road::cpu::rotate(c.problem, x.rows(), z.rows(), false, kSerial);
  Stack& saved = from_output ? z : x;
  Results expected(c);
  road::cpu::backward(c.problem, gz.rows(), saved.rows(), from_output, expected.wanted(), kSerial);
  for (const Runner& runner : kRunners) {
    Stack z2 = c.make_rows();
    road::cpu::rotate(c.problem, x.rows(), z2.rows(), false, runner.parallel);
    CHECK(regime, z2.same_rows(z), c.describe(), " forward differs, ", runner.name);
    Results got(c);
    road::cpu::backward(c.problem, gz.rows(), saved.rows(), from_output, got.wanted(), runner.parallel);
    CHECK(regime, got.gx.same_rows(expected.gx), c.describe(), " gx differs, ", runner.name);
    CHECK(regime, got.gp.same_rows(expected.gp), c.describe(), " gp differs, ", runner.name);
    CHECK(regime, got.gq.same_rows(expected.gq), c.describe(), " gq differs, ", runner.name);
    Results only_gx(c);
    road::cpu::backward(c.problem, gz.rows(), saved.rows(), from_output, only_gx.wanted(true, false, false),
                        runner.parallel);
    Results only_gx_serial(c);
    road::cpu::backward(c.problem, gz.rows(), saved.rows(), from_output, only_gx_serial.wanted(true, false, false),
                        kSerial);
    CHECK(regime, only_gx.gx.same_rows(only_gx_serial.gx), c.describe(), " gx alone differs, ", runner.name);
  }
}

void test(DType dtype, Form form) {
  Regime regime("repeatable, ", name(dtype), " ", name(form));
  Random random(31);
  // Enough elements for several threads: up to 32768 stay on one.
  for (const bool from_output : {false, true}) {
    Case wide(dtype, form, {160, 1024, 64});
    check(regime, wide, random, from_output);

    constexpr int64_t kAdapters = 5, kRowsPerId = 2, kIds = 350;
    Case mixed(dtype, form, {kIds * kRowsPerId, 192, 2}, kAdapters);
    std::vector<int64_t> ids(kIds);
    for (int64_t& id : ids) id = std::max<int64_t>(random.below(9) - 4, -1);  // half of them -1; adapter 4 alone
    for (int64_t k = 0; k < kIds; k += 50) ids[k] = kAdapters - 1;
    mixed.use_ids(ids, from_output, kRowsPerId);
    check(regime, mixed, random, from_output);
  }
}

}  // namespace

void test_repeatable() {
  for (const DType dtype : kDTypes)
    for (const Form form : kForms) test(dtype, form);
}
