"""transformers with torch: python -m benchmarks.throughput.transformers CASE"""

import os
import sys
from dataclasses import asdict

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.throughput.cases import MODELS, Case, case_of, lengths, report


def model_of(case: Case) -> Qwen3ForCausalLM:
    """The case's model."""
    torch.manual_seed(0)
    config = Qwen3Config(
        **asdict(MODELS[case.model]),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=4096,
        eos_token_id=None,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def rollout(case: Case) -> None:
    """`generate`, which gets each prompt once for every generation."""
    m, model = MODELS[case.model], model_of(case).eval()
    prompts = torch.randint(2, m.vocab_size, (case.prompts, case.prompt_length)).repeat_interleave(case.generations, 0)
    stop_ids = list(range(1, 1 + round(case.stop_share * m.vocab_size))) or None
    at_a_time = case.max_rows or case.rows

    @torch.no_grad()
    def run(number: int) -> float:
        tokens = 0
        for first in range(0, case.rows, at_a_time):
            rows = prompts[first : first + at_a_time]
            output = model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=case.completion_length,
                eos_token_id=stop_ids,
                pad_token_id=0,
            )[:, case.prompt_length :]
            tokens += int((output != 0).sum()) if stop_ids else output.numel()
        return tokens

    report(case, run)


def update(case: Case) -> None:
    """The clipped loss of the completions' logprobs; logits of the prompts are not computed."""
    m, model = MODELS[case.model], model_of(case).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.99), weight_decay=0.0)
    tokens = torch.randint(2, m.vocab_size, (case.rows, case.prompt_length + case.completion_length))
    mask = torch.arange(case.completion_length)[None] < torch.tensor(lengths(case))[:, None]
    attention = torch.cat([torch.ones(case.rows, case.prompt_length, dtype=torch.bool), mask], 1).long()
    old = torch.full(mask.shape, -float(torch.log(torch.tensor(float(m.vocab_size)))))
    advantages = torch.randn(case.rows, 1)

    def run(number: int) -> float:
        optimizer.zero_grad()
        output = model(tokens, attention_mask=attention, logits_to_keep=case.completion_length + 1)
        logprobs = torch.log_softmax(output.logits[:, :-1], -1)
        logprobs = logprobs.gather(2, tokens[:, case.prompt_length :, None])[..., 0]
        ratio = torch.exp(logprobs - old)
        losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.28))
        loss = torch.where(mask, losses, 0.0).sum() / case.rows / case.completion_length
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return case.rows * case.prompt_length + sum(lengths(case))

    report(case, run)


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    case = case_of(sys.argv[1])
    {"rollout": rollout, "update": update}[case.kind](case)
