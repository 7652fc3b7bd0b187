"""The OpenAI client: chat, and how much of the prompt came from the cache.

The server (``make serve``) may be elsewhere: ``python examples/openai_client.py http://HOST:PORT``.
"""

import sys

from openai import OpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000"
client = OpenAI(base_url=URL + "/v1", api_key="none")
messages = [
    {"role": "system", "content": "You answer in one short sentence. " * 40},
    {"role": "user", "content": "What is the capital of France?"},
]
for _ in range(2):
    answer = client.chat.completions.create(model="default", messages=messages, max_tokens=16, temperature=0)
    usage = answer.usage
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    print(answer.choices[0].message.content)
    print(f"  prompt of {usage.prompt_tokens} tokens, {cached} of them from the cache")
