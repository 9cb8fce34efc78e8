"""The lab's second edition, under construction: experiments as data, judged by one rule, fresh as long as behaviour is the same.

Claims stand in `tessera/claims`. Those of `tokens/fopru` and `tokens/random` have moved; `tests/lab/second` runs the whole way on
tiny models, from a claim to its evidence. No command uses it yet. It replaces `lab.claim`, `lab.lab`, `lab.evidence` and
`lab.verify` when the claims of all parts stand in this form.
"""
