// Prints one line per regime, and one per failed comparison in it.
#pragma once

#include <cstdint>
#include <iostream>
#include <sstream>
#include <string>

// The arguments after the condition are the message, evaluated only if the condition fails.
#define CHECK(regime, condition, ...) \
  ((regime).passed(condition) || (regime).fail(__FILE__, __LINE__, #condition, text(__VA_ARGS__)))

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  out.precision(17);
  static_cast<void>((out << ... << parts));  // of no parts, clang warns
  return out.str();
}

class Regime {
 public:
  template <class... Parts>
  explicit Regime(const Parts&... name) : name_(text(name...)) {}
  Regime(const Regime&) = delete;

  ~Regime() {
    std::string bound;
    if (worst_ > 0) {
      std::ostringstream out;
      out.precision(2);
      out << ", worst error " << std::fixed << worst_ << " of its bound";
      bound = out.str();
    }
    // A regime that compared nothing tests nothing.
    const bool ok = failures_ == 0 && checks_ > 0;
    std::cout << (ok ? "ok    " : "FAIL  ") << name_ << ": " << checks_ << " checks, " << failures_ << " failed"
              << bound << std::endl;
    ++regimes;
    if (!ok) ++failed_regimes;
  }

  bool passed(bool ok) {
    ++checks_;
    return ok;
  }

  bool fail(const char* file, int line, const char* condition, const std::string& values) {
    if (++failures_ <= kPrinted)
      std::cout << file << ":" << line << ": " << name_ << ": not (" << condition << "): " << values << "\n";
    return false;
  }

  // |got - want| in units of the error that is allowed.
  void note_error(double relative_to_bound) {
    if (relative_to_bound > worst_) worst_ = relative_to_bound;
  }

  static inline int64_t regimes = 0;
  static inline int64_t failed_regimes = 0;

 private:
  static constexpr int64_t kPrinted = 5;  // of the failures
  const std::string name_;
  int64_t checks_ = 0, failures_ = 0;
  double worst_ = 0;
};
