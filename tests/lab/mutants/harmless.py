"""Edits that change nothing that is done: comments, docstrings, formatting, renames, moved functions, equivalent code."""

from __future__ import annotations

from tests.lab.mutants import Edit

NOTES = [
    Edit(
        "comment in aim",
        "parts/tokens/aim.py",
        "    for _ in range(steps):",
        "    # one step of the walk\n    for _ in range(steps):",
    ),
    Edit(
        "comment in m3", "parts/tokens/m3.py", "    there = members >= 0\n", "    there = members >= 0  # a member, not a hole\n"
    ),
    Edit(
        "comment in look",
        "world/look.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\n# how things look\n",
    ),
    Edit(
        "comment in the lab",
        "lab/local_lab.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\n# what is measured with\n",
    ),
    Edit(
        "comment in the judge",
        "lab/judge.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\n# what is judged\n",
    ),
    Edit(
        "comment in a protocol",
        "lab/protocols/answering.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\n# what is asked\n",
    ),
    Edit(
        "comment in loss", "nn/loss.py", "    targets = labels[:, 1:]\n", "    # what comes next\n    targets = labels[:, 1:]\n"
    ),
    Edit("comment in the trainer", "training/trainer.py", "def _fresh_state()", "# What is kept.\n\n\ndef _fresh_state()"),
    Edit("comment in remap", "hosts/remap.py", "    places = keys - offset\n", "    places = keys - offset  # columns\n"),
    Edit("comment in scoring", "evaluation/scoring.py", "IOU = 0.5\n", "IOU = 0.5  # as usual\n"),
    Edit(
        "docstring of keep_top",
        "nn/reduction.py",
        'of equal ones the earlier."""\n    lowest',
        'of equal ones the one that comes first."""\n    lowest',
    ),
    Edit(
        "docstring of Muon",
        "training/optim.py",
        "One update of all parameters that have a gradient.",
        "Updates all parameters that have a gradient.",
    ),
    Edit(
        "docstring of segments",
        "nn/segments.py",
        "A padding token sees itself and nothing else,",
        "Padding sees itself and nothing else,",
    ),
    Edit("docstring of Rng", "world/rng.py", "All items in random order.", "The items, shuffled."),
    Edit(
        "docstring of a host's view",
        "generation/sampling.py",
        "Chooses tokens for one run; drawing goes on",
        "Chooses the tokens of one run; drawing goes on",
    ),
    Edit(
        "docstring of flamingo",
        "parts/couplings/flamingo.py",
        "Leaves the embeddings [B, T, E] as they are.",
        "Gives the embeddings [B, T, E] back.",
    ),
    Edit(
        "docstring of mlp",
        "parts/connectors/mlp.py",
        "Truncated normal 0.02, zero bias.",
        "Weights normal 0.02, truncated; bias zero.",
    ),
]
FORM = [
    Edit(
        "blank line in povid", "parts/preference/povid.py", "    kept = float(torch.cumprod", "\n    kept = float(torch.cumprod"
    ),
    Edit(
        "line broken in v2pe",
        "parts/couplings/v2pe.py",
        "    visual = visual & real\n",
        "    visual = (\n        visual & real\n    )\n",
    ),
    Edit("brackets in plan", "training/plan.py", "return (step + 1) / warmup", "return ((step + 1)) / warmup"),
    Edit(
        "quotes in sampling",
        "generation/sampling.py",
        "torch.multinomial(self._warp(None, logits).softmax(-1), 1, generator=self.random)[:, 0]",
        "torch.multinomial(\n                self._warp(None, logits).softmax(-1), 1, generator=self.random\n            )[:, 0]",
    ),
    Edit(
        "line broken in vit",
        "nn/vit.py",
        "        self.qkv = nn.Linear(width, 3 * width)",
        "        self.qkv = nn.Linear(\n            width,\n            3 * width,\n        )",
    ),
    Edit(
        "blank line in render",
        "world/render.py",
        '        mask = patch.getchannel("A")',
        '\n        mask = patch.getchannel("A")',
    ),
    Edit(
        "types spelled out in contrast",
        "models/contrast.py",
        "        weight = self.there.to(",
        "        weight: Tensor = self.there.to(",
    ),
    Edit("brackets in intervals", "evaluation/intervals.py", "    share = right / n\n", "    share = (right / n)\n"),
]
RENAMES = [
    Edit(
        "renamed in globalcom2",
        "parts/tokens/globalcom2.py",
        "    sigma = ((sums - sums.max()) / temperature).softmax(0)\n    return (keep * (1 + sigma - sigma.mean())).clamp(max=1)",
        "    sharp = ((sums - sums.max()) / temperature).softmax(0)\n    return (keep * (1 + sharp - sharp.mean())).clamp(max=1)",
    ),
    Edit(
        "renamed in videollama3",
        "parts/video/videollama3.py",
        "    still = stay.sum(1) < least\n    stay[still, :least] = True",
        "    few = stay.sum(1) < least\n    stay[few, :least] = True",
    ),
    Edit(
        "renamed in rng",
        "world/rng.py",
        "            j = i + self.below(len(pool) - i)\n            pool[i], pool[j] = pool[j], pool[i]",
        "            other = i + self.below(len(pool) - i)\n            pool[i], pool[other] = pool[other], pool[i]",
    ),
    Edit(
        "renamed in optim",
        "training/optim.py",
        "        for i, parameter in enumerate(parameters):\n"
        "            by_shape.setdefault(tuple(parameter.shape), []).append(i)",
        "        for place, weight in enumerate(parameters):\n"
        "            by_shape.setdefault(tuple(weight.shape), []).append(place)",
    ),
    Edit(
        "renamed in segments",
        "nn/segments.py",
        "    rank = same.tril(-1).sum(-1)\n"
        "    prefix = (segment_ids == 0).sum(1, keepdim=True)\n"
        "    return torch.where(segment_ids == 0, rank, rank + prefix) * (segment_ids >= 0)",
        "    place = same.tril(-1).sum(-1)\n"
        "    shared = (segment_ids == 0).sum(1, keepdim=True)\n"
        "    return torch.where(segment_ids == 0, place, place + shared) * (segment_ids >= 0)",
    ),
    Edit(
        "renamed in filters",
        "generation/sampling.py",
        "        found.append(TopKLogitsWarper(sampling.top_k))\n"
        "    if sampling.top_p < 1:\n"
        "        found.append(TopPLogitsWarper(sampling.top_p))\n"
        "    return found",
        "        found.append(TopKLogitsWarper(sampling.top_k))\n"
        "    warping = found\n"
        "    if sampling.top_p < 1:\n"
        "        warping.append(TopPLogitsWarper(sampling.top_p))\n"
        "    return warping",
    ),
    Edit(
        "renamed in scoring",
        "evaluation/scoring.py",
        "    found = parse_box(said)\n    overlap = 0.0 if found is None else iou(found, truth)",
        "    box = parse_box(said)\n    overlap = 0.0 if box is None else iou(box, truth)",
    ),
    Edit(
        "renamed in griffon",
        "parts/grounding/griffon.py",
        "    ends = [len(decode(ids[: at + 1])) for at in range(len(ids))]\n"
        "    return decode(ids), [(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]",
        "    stops = [len(decode(ids[: at + 1])) for at in range(len(ids))]\n"
        "    return decode(ids), [(start, end) for start, end in zip([0, *stops[:-1]], stops, strict=True)]",
    ),
    Edit(
        "dictionary spelled out in the trainer",
        "training/trainer.py",
        'dict(skipped=0, in_a_row=0, seconds=0.0, precision="fp32", compiled=False, **counters)',
        '{"skipped": 0, "in_a_row": 0, "seconds": 0.0, "precision": "fp32", "compiled": False, **counters}',
    ),
]
SAME = [
    Edit(
        "keep_top by negation",
        "nn/reduction.py",
        "chosen = torch.arange(score.shape[1], device=score.device) < count[:, None]",
        "chosen = count[:, None] > torch.arange(score.shape[1], device=score.device)",
    ),
    Edit(
        "hashed in an explicit loop",
        "nn/reduction.py",
        "    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):\n"
        "        mixed = ((mixed ^ (mixed >> shift)) * factor) & mask\n",
        "    mixed = ((mixed ^ (mixed >> 16)) * 0x7FEB352D) & mask\n    mixed = ((mixed ^ (mixed >> 15)) * 0x846CA68B) & mask\n",
    ),
    Edit(
        "loss by gather",
        "nn/loss.py",
        '    each = F.cross_entropy(logits, targets[keep], reduction="none")\n',
        "    each = -logits.log_softmax(-1).gather(1, targets[keep][:, None])[:, 0]\n",
    ),
    Edit("loss summed otherwise", "nn/loss.py", "(each * weight).sum(), weight.sum()", "torch.dot(each, weight), weight.sum()"),
    Edit(
        "attention scaled afterwards",
        "nn/vit.py",
        "weights = (query * scaling) @ key.transpose(-1, -2)",
        "weights = (query @ key.transpose(-1, -2)) * scaling",
    ),
    Edit(
        "experts in another order",
        "nn/moe.py",
        "for index, expert in enumerate(self.experts):",
        "for index, expert in reversed(list(enumerate(self.experts))):",
    ),
    Edit(
        "cross-attention by division",
        "nn/cross_attention.py",
        "scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)",
        "scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5",
    ),
    Edit(
        "orthogonalised without baddbmm",
        "training/optim.py",
        "x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)",
        "x = a * x + (b * gram + c * gram @ gram) @ x",
    ),
    Edit(
        "cosine by another formula",
        "training/plan.py",
        "0.5 * (1 + math.cos(math.pi * done))",
        "math.cos(math.pi * done / 2) ** 2",
    ),
    Edit(
        "m3 by a mean",
        "parts/tokens/m3.py",
        "(values.sum(1) / there.sum(1, keepdim=True))",
        "(values.mean(1) * values.shape[1] / there.sum(1, keepdim=True))",
    ),
    Edit(
        "povid's list in a loop",
        "parts/preference/povid.py",
        '    return ", ".join(f"{name} {place}" if form == "places" else name for name, place in pairs)',
        "    said = []\n"
        "    for name, place in pairs:\n"
        '        said.append(f"{name} {place}" if form == "places" else name)\n'
        '    return ", ".join(said)',
    ),
    Edit(
        "scm by matmul",
        "parts/tokens/scm.py",
        'torch.einsum("bq,bqk->bk", later, attention)',
        "(later[:, None] @ attention)[:, 0]",
    ),
    Edit(
        "llava_align's contrast by a difference",
        "parts/decoding/llava_align.py",
        "((1 + alpha) * logits - alpha * blind)",
        "(logits + alpha * (logits - blind))",
    ),
    Edit(
        "positional_mlp's gains added otherwise",
        "parts/connectors/positional_mlp.py",
        "said * self.content_gain + where * self.place_gain",
        "where * self.place_gain + said * self.content_gain",
    ),
    Edit(
        "majority by a loop",
        "evaluation/scoring.py",
        "    return sum(max(counts.values()) for counts in answers.values()) / max(1, len(questions))",
        "    right = 0\n"
        "    for counts in answers.values():\n"
        "        right += max(counts.values())\n"
        "    return right / max(1, len(questions))",
    ),
    Edit(
        "rng's integer at once",
        "world/rng.py",
        "return low + self.below(high - low + 1)",
        "return low + int(self._next() * (high - low + 1))",
    ),
    Edit(
        "images scaled by a reciprocal",
        "models/image_processing.py",
        "return (values - mean) / std",
        "return (values - mean) * (1 / std)",
    ),
    Edit(
        "contrast's mean",
        "models/contrast.py",
        "(F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2",
        "0.5 * F.cross_entropy(per_image, target) + 0.5 * F.cross_entropy(per_text, target)",
    ),
    Edit("dpo by softplus", "training/preference.py", "-F.logsigmoid(beta * margin)", "F.softplus(-beta * margin)"),
]
HARMLESS = [*NOTES, *FORM, *RENAMES, *SAME]
