"""One server, several accuracies: the field ``leankv`` says how a request's own pages are compressed.

The text repeats itself, so it is pruned to far less than other texts are (docs/sizing.md has what to expect).

The server (``make serve``) may be elsewhere: ``python examples/request_accuracy.py http://HOST:PORT``.
"""

import sys

from openai import OpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000"
client = OpenAI(base_url=URL + "/v1", api_key="none")
prompt = "The city of Paris has many museums. " * 100 + "The capital of France is"
for profile in ("near-lossless", "balanced", "small"):
    answer = client.completions.create(
        model="default", prompt=prompt, max_tokens=8, temperature=0, extra_body={"leankv": {"profile": profile}}
    )
    told = answer.metadata["leankv"][0]
    print(f"{profile:13} {answer.choices[0].text!r}: {told['compressed_tokens']} tokens in {told['bytes']:,} bytes,")
    print(f"  {told['ratio']:.2f} times fewer than in 16 bits, {told['ratio_once_trimmed']:.2f} once trimmed")
