"""The OpenAI client against a running server (``make serve``): chat, and how much of the prompt came from the cache."""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:30000/v1", api_key="none")
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
