"""An SGLang frontend program: four questions on one document, which the cache holds once.

The server (``make serve``) may be elsewhere: ``python examples/frontend_program.py http://HOST:PORT``.
"""

import sys

import sglang as sgl
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000"
DOCUMENT = "The river Seine flows through Paris. Its length is 777 kilometres. " * 40


@sgl.function
def ask(s: sgl.lang.interpreter.ProgramState, question: str) -> None:
    """One question."""
    s += DOCUMENT + "\nQuestion: " + question + "\nAnswer:"
    s += sgl.gen("answer", max_tokens=12, temperature=0, stop="\n")


sgl.set_default_backend(RuntimeEndpoint(URL))
questions = ["Which river?", "Which city?", "How long is it?", "What flows?"]
for question, state in zip(questions, ask.run_batch([{"question": q} for q in questions]), strict=True):
    print(question, state["answer"].strip(), f"({state.get_meta_info('answer')['cached_tokens']} tokens cached)")
