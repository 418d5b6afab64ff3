// What the benchmark needs of llama.cpp, with arguments that ctypes can pass.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "llama.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void errors_only(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

struct Engine {
    llama_model * model;
    llama_context * context;
    int32_t vocab_size;
    int32_t threads;

    llama_token most_likely(int32_t row) const {
        const float * logits = llama_get_logits_ith(context, row);
        return static_cast<llama_token>(std::max_element(logits, logits + vocab_size) - logits);
    }
};

// The last token of every sequence asks for logits.
struct Batch {
    llama_batch batch;

    explicit Batch(int32_t capacity) : batch(llama_batch_init(capacity, 0, 1)) {}
    ~Batch() { llama_batch_free(batch); }

    void add(llama_token token, llama_pos position, llama_seq_id sequence, bool wants_logits) {
        const int32_t i = batch.n_tokens++;
        batch.token[i] = token;
        batch.pos[i] = position;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = sequence;
        batch.logits[i] = wants_logits;
    }
};

}  // namespace

extern "C" {

// Null if the file cannot be loaded.
void * bridge_open(const char * path, int32_t threads, bool repack) {
    llama_log_set(errors_only, nullptr);
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.load_mode = LLAMA_LOAD_MODE_NONE;  // read, not mapped: mapped pages may be evicted
    params.use_extra_bufts = repack;
    llama_model * model = llama_model_load_from_file(path, params);
    if (!model) {
        return nullptr;
    }
    return new Engine{model, nullptr, llama_vocab_n_tokens(llama_model_get_vocab(model)), threads};
}

// Makes room for so many sequences of `length` tokens each; false if there is none.
bool bridge_make_room(void * opened, int32_t sequences, int32_t length) {
    Engine & engine = *static_cast<Engine *>(opened);
    llama_free(engine.context);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = sequences * length;
    params.n_ubatch = std::min(sequences * length, 2048);  // as many at once as Ventoux takes; 512 unless told
    params.n_seq_max = sequences;
    params.n_outputs_max = sequences;
    params.n_threads = params.n_threads_batch = engine.threads;
    engine.context = llama_init_from_model(engine.model, params);
    return engine.context != nullptr;
}

// Reads `sequences` prompts of `length` tokens and takes `steps` greedy steps; false if llama.cpp fails.
bool bridge_run(void * opened, const int32_t * prompts, int32_t sequences, int32_t length, int32_t steps,
                double * prefill_seconds, double * decode_seconds) {
    Engine & engine = *static_cast<Engine *>(opened);
    llama_memory_clear(llama_get_memory(engine.context), true);
    Batch prompt(sequences * length);
    for (int32_t s = 0; s < sequences; s++) {
        for (int32_t i = 0; i < length; i++) {
            prompt.add(prompts[s * length + i], i, s, i == length - 1);
        }
    }
    Clock::time_point start = Clock::now();
    if (llama_decode(engine.context, prompt.batch) != 0) {
        return false;
    }
    std::vector<llama_token> newest(sequences);
    for (int32_t s = 0; s < sequences; s++) {
        newest[s] = engine.most_likely((s + 1) * length - 1);
    }
    *prefill_seconds = seconds_since(start);

    start = Clock::now();
    Batch step(sequences);
    for (int32_t t = 0; t < steps; t++) {
        step.batch.n_tokens = 0;
        for (int32_t s = 0; s < sequences; s++) {
            step.add(newest[s], length + t, s, true);
        }
        if (llama_decode(engine.context, step.batch) != 0) {
            return false;
        }
        for (int32_t s = 0; s < sequences; s++) {
            newest[s] = engine.most_likely(s);
        }
    }
    *decode_seconds = seconds_since(start);
    return true;
}

bool bridge_quantize_q4_0(const char * source, const char * target) {
    llama_log_set(errors_only, nullptr);
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = LLAMA_FTYPE_MOSTLY_Q4_0;
    return llama_model_quantize(source, target, &params) == 0;
}

const char * bridge_system_info() { return llama_print_system_info(); }

}  // extern "C"
