"""The lab's second edition, under construction: experiments as data, judged by one rule, fresh as long as behaviour is the same.

`experiment`, `judge` and `protocols` are complete in themselves and tested; no command runs them yet, and no part's claims have
moved. They replace `lab.claim`, `lab.lab`, `lab.evidence` and `lab.verify` when the claims of all parts stand in this form.
"""
