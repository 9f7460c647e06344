"""TRL's last PPOTrainer (1.12.0) on the same model, prompts and lengths: seconds of training, as one JSON line.

usage: trl_ppo.py MODEL REWARD_MODEL PROMPTS.json EPISODES_PER_STEP RESPONSE_TOKENS. Run with TRL 1.12.0 before all else on PYTHONPATH.
"""

import json
import sys
import time
from pathlib import Path

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

model, reward_model, prompts_file, batch, response_tokens = sys.argv[1:]
assert trl.__version__ == "1.12.0", trl.__version__
torch.manual_seed(0)
prompts = json.loads(Path(prompts_file).read_text())
tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
policy, reference = (AutoModelForCausalLM.from_pretrained(model) for _ in range(2))
scorers = [AutoModelForSequenceClassification.from_pretrained(reward_model, num_labels=1) for _ in range(2)]
config = PPOConfig(
    output_dir="var/bench/trl-ppo",
    per_device_train_batch_size=int(batch),
    num_mini_batches=1,
    num_ppo_epochs=1,
    total_episodes=len(prompts),
    local_rollout_forward_batch_size=int(batch),
    response_length=int(response_tokens),
    stop_token="eos",
    kl_coef=0.02,
    temperature=1.0,
    learning_rate=1e-5,
    num_sample_generations=0,
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
    logging_steps=1000,
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
)
trainer = PPOTrainer(
    args=config,
    processing_class=tokenizer,
    model=policy,
    ref_model=reference,
    reward_model=scorers[0],
    value_model=scorers[1],
    train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts]),
    eval_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts[:8]]),
)
began = time.perf_counter()
trainer.train()
print(json.dumps({"seconds": time.perf_counter() - began}))
