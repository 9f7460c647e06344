"""The gateway: an OpenAI-compatible door to the serving policy, a process of its own (docs/decisions/gateway.md).

app.py         the addresses
exchange.py    one question, from its admission to the note about it
asked.py       what a request may say; refused in OpenAI's error shape
replies.py     answers in OpenAI's shapes, whole or streamed
policy.py      the policy server: asked with patience, read piece by piece, timed, cancelled
admission.py   keys, rate limits and which policy serves: the few milliseconds with the database
afterwards.py  use and prompts, written after the answer and kept through a crash of the database
turns.py       answers that the playground's pages come to fetch
"""
