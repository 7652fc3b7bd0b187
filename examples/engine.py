"""In process, without HTTP: the arguments of ``sglang.Engine``, and ``leankv``."""

from leankv_sglang.engine import engine

if __name__ == "__main__":  # SGLang starts processes that import this file
    e = engine(leankv="balanced", max_total_tokens=16384)
    prompts = ["The capital of France is", "The capital of Italy is"]
    for prompt, out in zip(prompts, e.generate(prompts, {"max_new_tokens": 8, "temperature": 0}), strict=True):
        print(prompt, out["text"].strip(), out["meta_info"]["leankv"])
    e.shutdown()
