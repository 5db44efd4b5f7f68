"""How models answer that were asked for one JSON object and nothing else."""

import json
from collections.abc import Callable

OTHER = '{"1": {"chain_of_thought": "As a draft.", "cluster_id": 1}'  # the beginning of a reply


def ids_of(reply: str) -> dict[str, int]:
    return {key: verdict["cluster_id"] for key, verdict in json.loads(reply).items()}


def draft_of(reply: str) -> str:
    """A reply of the same form that says something else: all responses share a cluster."""
    return json.dumps({key: {"chain_of_thought": "At first sight.", "cluster_id": 1} for key in json.loads(reply)})


# What is said in place of a reply, given as the JSON that the rubric asks for; all of it means the same.
STYLES: dict[str, Callable[[str], str]] = {
    "plain": lambda reply: reply,
    "indented": lambda reply: json.dumps(json.loads(reply), indent=2),
    "fence": lambda reply: f"```json\n{reply}\n```",
    "fence without a language": lambda reply: f"\n```\n{reply}```\n",
    "two fences": lambda reply: f"``` ```{reply}",
    "prose before": lambda reply: f"Sure! Here is the result: {reply}",
    "prose after": lambda reply: f"{reply}\n\nResponses 1 and 2 share {{their}} strategy [see above].",
    "prose around a fence": lambda reply: f"Here it is:\n```json\n{reply}\n```\nI hope this helps {{:-}}",
    "think": lambda reply: f"<think>\nLet {{1, 2}} be a set, f(x) = [x].\n</think>\n\n{reply}",
    "thinking": lambda reply: f"<thinking>Hm.</thinking>{reply}",
    "reasoning": lambda reply: f"<REASONING>Hm.</REASONING>\n```json\n{reply}\n```",
    "empty thought": lambda reply: f"<think>\n\n</think>\n\n{reply}",
    "thought opened by the template": lambda reply: f"Okay, {draft_of(reply)}, no.\n</think>\n{reply}",
    "draft in a thought": lambda reply: f"<think>Maybe {draft_of(reply)}? No.</think>{reply}",
    "drafts that break off": lambda reply: f'<think>{OTHER}, "2": {{"chain no. {{"1": 0, \n"oops</think>{reply}',
    "draft with a string left open": lambda reply: f'<think>Say {{"1": "by dir... no</think>{reply}',
    "draft without tags": lambda reply: f"First I thought {draft_of(reply)}, but then:\n{reply}",
    "a draft that breaks off, without tags": lambda reply: f"{OTHER[:-10]}... wait, again:\n{reply}",
    "two thoughts": lambda reply: f"<think>a</think>{draft_of(reply)}<think>b</think>{reply}",
    "unclosed thought that ends with it": lambda reply: f"<think>Maybe {draft_of(reply)}? No:\n```\n{reply}\n```\n",
    "tags in a string": lambda reply: reply.replace("by the rule", "says </think> and <think>"),
    "JSON in a string": lambda reply: reply.replace("by the rule", 'says {\\"1\\": 0, \\"2\\": 0} [1, 2'),
    "LaTeX in a string": lambda reply: reply.replace("by the rule", r"by \(x^2 \equiv \sqrt{2}\), \underline{so}"),
    "flat": lambda reply: json.dumps(ids_of(reply)),
    "flat texts": lambda reply: json.dumps({key: str(id_) for key, id_ in ids_of(reply).items()}),
    "ids as texts": lambda reply: json.dumps({key: {"cluster_id": str(id_)} for key, id_ in ids_of(reply).items()}),
    "wrapped": lambda reply: json.dumps({"result": json.loads(reply)}),
    "wrapped and flat": lambda reply: f"Result:\n{json.dumps({'clusters': ids_of(reply)}, indent=1)}",
    "array": lambda reply: json.dumps([*ids_of(reply).values()]),
    "array in prose": lambda reply: f"As [1, 2] differ:\n\n**Result:** {[*ids_of(reply).values()]}.\n\nThat is it.",
    "array of texts in a fence": lambda reply: f"```json\n{json.dumps([*map(str, ids_of(reply).values())])}\n```",
    "array after a thought": lambda reply: f"<think>Or [1]?</think>\n{json.dumps([*ids_of(reply).values()], indent=1)}",
}
