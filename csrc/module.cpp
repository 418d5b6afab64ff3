// The Python face: `ventoux.ops._native`. Pointers come as integers from tensors that ops/cpu.py has checked and
// keeps alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "machine.h"
#include "positions.h"
#include "quantize.h"
#include "stack.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace nb = nanobind;

namespace ventoux {
namespace {

using Address = uintptr_t;
// data, count, cols, bf16
using RowsTuple = std::tuple<Address, int64_t, int64_t, bool>;
// data, groups, scales, rows, cols, format
using WeightTuple = std::tuple<Address, Address, Address, int64_t, int64_t, int>;
template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Rows rows(const RowsTuple& t) { return {at<void>(std::get<0>(t)), std::get<1>(t), std::get<2>(t), std::get<3>(t)}; }

Weight weight(const WeightTuple& t) {
  Weight w;
  w.data = at<const uint8_t>(std::get<0>(t));
  w.group_scales = at<const uint8_t>(std::get<1>(t));
  w.row_scales = at<const float>(std::get<2>(t));
  w.rows = std::get<3>(t);
  w.cols = std::get<4>(t);
  w.format = Format(std::get<5>(t));
  return w;
}

using LayerTuple = std::tuple<std::vector<RowsTuple>, std::vector<WeightTuple>>;

// norms: input, q_a, kv_a, post. weights: q_a, q_b, kv_a, kv_b, o, router, gate_up, down, shared (or dense) gate, up,
// down.
Stack make_stack(std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> sizes, float eps,
                 float softmax_scale, float route_scale, RowsTuple norm, const std::vector<LayerTuple>& layers) {
  const auto [heads, nope, rope, latent, value, top_k, num_experts] = sizes;
  Stack stack{heads, nope, rope, latent, value, top_k, num_experts, eps, softmax_scale, route_scale, rows(norm), {}};
  for (const auto& [norms, weights] : layers) {
    if (norms.size() != 4 || weights.size() != 11) throw std::invalid_argument("a layer has 4 norms and 11 weights");
    Layer layer{rows(norms[0]), rows(norms[1]), rows(norms[2]), rows(norms[3]), weight(weights[0]), weight(weights[1]),
                weight(weights[2]), weight(weights[3]), weight(weights[4]), weight(weights[5]), weight(weights[6]),
                weight(weights[7]), {weight(weights[8]), weight(weights[9]), weight(weights[10])}};
    stack.layers.push_back(layer);
  }
  return stack;
}

std::vector<std::string> instruction_sets(bool emulated) {
  std::vector<std::string> names;
  for (const Kernels& kernels : usable(emulated)) names.emplace_back(kernels.name);
  return names;
}

// A pool and the kernels of one instruction set. Calls let go of the interpreter; two at once wait for each other.
class Runtime {
 public:
  Runtime(int num_threads, const std::string& name) : pool_(num_threads) {
    for (const Kernels& kernels : usable(true))
      if (name == kernels.name) kernels_ = kernels;
    if (kernels_.name == nullptr) throw std::invalid_argument("this machine cannot run " + name);
  }

  int num_threads() const { return pool_.num_threads(); }
  size_t scratch_bytes() const { return pool_.scratch_bytes(); }

  void rms_norm(RowsTuple x, RowsTuple w, float eps, RowsTuple out) {
    call([&] { kernels_.rms_norm(pool_, rows(x), rows(w), eps, rows(out)); });
  }
  void linear(RowsTuple x, const WeightTuple& w, RowsTuple out) {
    call([&] { kernels_.linear(pool_, rows(x), weight(w), rows(out)); });
  }
  void route(RowsTuple x, const WeightTuple& gate, int64_t top_k, float scale, Address weights, Address ids) {
    call([&] { kernels_.route(pool_, rows(x), weight(gate), top_k, scale, at<float>(weights), at<int64_t>(ids)); });
  }
  void moe(RowsTuple x, Address weights, Address ids, int64_t top_k, int64_t num_experts, const WeightTuple& gate_up,
           const WeightTuple& down, const WeightTuple& shared_gate, const WeightTuple& shared_up,
           const WeightTuple& shared_down, RowsTuple out) {
    const Routed routed{at<const int64_t>(ids), at<const float>(weights), top_k,
                        num_experts,            weight(gate_up),          weight(down)};
    const Mlp shared{weight(shared_gate), weight(shared_up), weight(shared_down)};
    call([&] { kernels_.moe(pool_, rows(x), routed, shared, rows(out)); });
  }
  void write_latent(RowsTuple latents, RowsTuple norm, float eps, Address cos, Address sin, int64_t rope_width,
                    RowsTuple cache, Address slots) {
    const Rope rope{at<const float>(cos), at<const float>(sin), rope_width};
    const int64_t* to = at<const int64_t>(slots);
    call([&] { kernels_.write_latent(pool_, rows(latents), rows(norm), eps, rope, rows(cache), to); });
  }
  void attention(RowsTuple q, const WeightTuple& kv_b, RowsTuple cache, const std::vector<int64_t>& lengths,
                 const std::vector<int64_t>& contexts, Address pages, int64_t max_pages, int64_t page_size,
                 std::tuple<int64_t, int64_t, int64_t, int64_t> sizes, float scale, Address cos, Address sin,
                 int64_t rope_width, Address query_scales, RowsTuple out) {
    const Layout layout{lengths.data(), contexts.data(), at<const int64_t>(pages), int64_t(lengths.size()), max_pages,
                        page_size};
    const auto [heads, nope, latent, value] = sizes;
    const Attention how{heads, nope, latent, value, scale, {at<const float>(cos), at<const float>(sin), rope_width},
                        at<const float>(query_scales)};
    call([&] { kernels_.attention(pool_, rows(q), weight(kv_b), rows(cache), layout, how, rows(out)); });
  }

  void run_stack(const Stack& stack, RowsTuple x, Address cos, Address sin, Address query_scales,
                 const std::vector<int64_t>& lengths, const std::vector<int64_t>& contexts, Address pages,
                 int64_t max_pages, int64_t page_size, Address slots, const std::vector<RowsTuple>& caches,
                 RowsTuple out) {
    if (caches.size() != stack.layers.size()) throw std::invalid_argument("one cache per layer");
    const Layout layout{lengths.data(), contexts.data(), at<const int64_t>(pages), int64_t(lengths.size()), max_pages,
                        page_size};
    Step step{{at<const float>(cos), at<const float>(sin), stack.rope}, at<const float>(query_scales), layout,
              at<const int64_t>(slots), {}};
    for (const auto& cache : caches) step.caches.push_back(rows(cache));
    call([&] { ventoux::run_stack(kernels_, pool_, stack, rows(x), step, rows(out)); });
  }

  void place(Address positions, int64_t count, Address frequencies, int64_t lanes, int64_t original, float beta,
             Address cos, Address sin, Address scales) {
    const Positions out{at<float>(cos), at<float>(sin), at<float>(scales)};
    call([&] {
      ventoux::place(pool_, at<const int64_t>(positions), count, at<const float>(frequencies), lanes, original, beta,
                     out);
    });
  }
  std::tuple<std::vector<bool>, std::vector<int64_t>> scan(RowsTuple x) {
    const Rows all = rows(x);
    std::vector<Scanned> scanned(size_t(all.count));
    call([&] { kernels_.scan(pool_, all, scanned.data()); });
    std::tuple<std::vector<bool>, std::vector<int64_t>> found;
    for (const Scanned& row : scanned) {
      std::get<0>(found).push_back(row.finite);
      std::get<1>(found).push_back(row.largest);
    }
    return found;
  }

 private:
  template <class Work>
  void call(const Work& work) {
#if defined(__linux__)
    // After a fork there are no threads to share work with, nor to join at the end.
    if (getpid() != process_)
      throw std::runtime_error("these operators were made in another process; make them after the fork");
#endif
    nb::gil_scoped_release release;
    std::lock_guard<std::mutex> lock(pool_.in_use());
    work();
  }

  Pool pool_;
  Kernels kernels_{};
#if defined(__linux__)
  pid_t process_ = getpid();
#endif
};

// Asks the kernel to back a range with huge pages: at 4 KiB a page, streaming weights misses the TLB all the time.
void use_huge_pages(Address address, size_t bytes) {
#if defined(__linux__)
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  const Address first = (address + page - 1) / page * page;
  if (address + bytes > first) madvise(at<void>(first), address + bytes - first, MADV_HUGEPAGE);
#endif
}

// Into memory for codes [rows, cols / 2] and group scales [rows, cols / 16].
void to_nvfp4(RowsTuple values, float global_scale, Address codes, Address scales) {
  const Rows from = rows(values);
  nb::gil_scoped_release release;
  quantize_nvfp4(from.data, from.bf16, from.count * from.cols, global_scale, at<uint8_t>(codes), at<uint8_t>(scales));
}

}  // namespace
}  // namespace ventoux

NB_MODULE(_native, m) {
  using ventoux::Runtime;
  // A program may end with an engine still open: its thread holds these objects, and nobody can act on the report.
  nb::set_leak_warnings(false);
  m.def("instruction_sets", &ventoux::instruction_sets, nb::arg("emulated") = false);
  m.def("to_nvfp4", &ventoux::to_nvfp4);
  m.def("use_huge_pages", &ventoux::use_huge_pages);
  nb::class_<ventoux::Stack>(m, "Stack");
  m.def("make_stack", &ventoux::make_stack);
  nb::class_<Runtime>(m, "Runtime")
      .def(nb::init<int, const std::string&>())
      .def_prop_ro("num_threads", &Runtime::num_threads)
      .def_prop_ro("scratch_bytes", &Runtime::scratch_bytes)
      .def("rms_norm", &Runtime::rms_norm)
      .def("linear", &Runtime::linear)
      .def("route", &Runtime::route)
      .def("moe", &Runtime::moe)
      .def("write_latent", &Runtime::write_latent)
      .def("attention", &Runtime::attention)
      .def("run_stack", &Runtime::run_stack)
      .def("place", &Runtime::place)
      .def("scan", &Runtime::scan);
}
