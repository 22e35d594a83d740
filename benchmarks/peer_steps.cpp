// Times single prefill and decode steps of llama.cpp through its C interface, on demand.
// Built against the peer's own headers and library by peer_llama.py.
//   usage: peer_steps [MODEL.gguf ROWS CONTEXT PROMPT]   (without arguments it says what it was built for)
// Reads lines "prefill TOKENS THREADS SECONDS" and "decode ROWS THREADS SECONDS"; answers each with one line of
// durations (seconds) of single runs, at least one, for about SECONDS in all. Each of the ROWS sequences holds CONTEXT
// tokens in a cache of its own; PROMPT is the longest prompt. Logits are computed, of a prompt's last token or of every
// row; nothing is chosen from them.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "llama.h"

namespace {

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "peer_steps: %s\n", what);
    std::exit(1);
}

struct Steps {
    llama_context* context;
    llama_memory_t memory;
    llama_batch batch;
    int vocab, rows, length;

    void add(int sequence, int position, bool wants_logits) {
        const int i = batch.n_tokens++;
        batch.token[i] = std::rand() % vocab;
        batch.pos[i] = position;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = sequence;
        batch.logits[i] = wants_logits;
    }

    double run() {
        const auto start = std::chrono::steady_clock::now();
        if (llama_decode(context, batch) != 0) fail("llama_decode refused a batch");
        llama_synchronize(context);
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }

    // The sequence after the last row is the prompts'.
    double prefill(int tokens) {
        batch.n_tokens = 0;
        for (int i = 0; i < tokens; ++i) add(rows, i, i == tokens - 1);
        const double duration = run();
        llama_memory_seq_rm(memory, rows, -1, -1);
        return duration;
    }

    double decode(int count) {
        batch.n_tokens = 0;
        for (int row = 0; row < count; ++row) add(row, length, true);
        const double duration = run();
        for (int row = 0; row < count; ++row) llama_memory_seq_rm(memory, row, length, -1);
        return duration;
    }

    // One prompt, copied: a copy between caches is done by the next step.
    void fill() {
        batch.n_tokens = 0;
        for (int i = 0; i < length; ++i) add(0, i, i == length - 1);
        run();
        for (int row = 1; row < rows; ++row) llama_memory_seq_cp(memory, 0, row, -1, -1);
        decode(1);
    }
};

}  // namespace

int main(int argc, char** argv) {
    if (argc == 1) return std::puts(llama_print_system_info()) < 0;
    if (argc != 5) fail("usage: peer_steps MODEL.gguf ROWS CONTEXT PROMPT");
    const int rows = std::atoi(argv[2]), length = std::atoi(argv[3]), prompt = std::atoi(argv[4]);
    llama_log_set([](ggml_log_level level, const char* text, void*) {
        if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    llama_model_params loading = llama_model_default_params();
    loading.progress_callback = [](float, void*) { return true; };  // the default one prints dots
    llama_model* model = llama_model_load_from_file(argv[1], loading);
    if (!model) fail("the model could not be loaded");
    llama_context_params params = llama_context_default_params();
    const int most = std::max(prompt, length + 1);
    params.n_seq_max = uint32_t(rows + 1);
    params.n_ctx = uint32_t((most + 255) / 256 * 256 * (rows + 1));
    params.n_batch = uint32_t(std::max(most, rows));
    llama_context* context = llama_init_from_model(model, params);
    if (!context) fail("the context could not be made");
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    Steps steps{context, llama_get_memory(context), llama_batch_init(int(params.n_batch), 0, 1), vocab, rows, length};
    steps.fill();
    std::puts("ready");
    std::fflush(stdout);
    char line[128], kind[16];
    int count, threads;
    double seconds;
    while (std::fgets(line, sizeof line, stdin)) {
        if (std::sscanf(line, "%15s %d %d %lf", kind, &count, &threads, &seconds) != 4) fail("a line was not understood");
        llama_set_n_threads(context, threads, threads);
        const bool is_decode = std::strcmp(kind, "decode") == 0;
        if (is_decode) steps.decode(count);  // warms up
        double total = 0;
        for (bool first = true; first || total < seconds; first = false) {
            const double duration = is_decode ? steps.decode(count) : steps.prefill(count);
            std::printf(first ? "%.9f" : " %.9f", duration);
            total += duration;
        }
        std::puts("");
        std::fflush(stdout);
    }
}
