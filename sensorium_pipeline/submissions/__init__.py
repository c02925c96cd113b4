"""Submissions: the package format, the inbox, the sandbox, the program inside it, and the checks on what comes out.

The order in which a submission meets these modules: `package` (what the folder must hold; `formats_2022`, `csv_2022` and
`checkpoint_2022` for what was made then), `teams` and `sending` (signed and sent), `inbox` (what was taken in, which `intake` of
the library decides), `release` and `staging` (what it may see), `isolation` and `sandbox` (where it runs; `launcher`, `seccomp`,
`control_groups` and `memory_watch` make that hold), `runner` (the program inside) and `interface` (what it calls), `transfer` (what
comes out), `predictions` (until it is inert), `evaluation` (the whole of one run) and `check` (the same at home).

What isolation cannot close: a submission can shape its predictions, its trained state, the message of its own exception (shown to its
team, cut to 400 characters) and the time it takes, and so carry out some of what it sees. It sees training trials and the inputs of
test trials, never a hidden response, so there is no score to be gained by that.
"""
