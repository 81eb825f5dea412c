"""One thin file a command: parse, call one function of `gistcli.run`, hand the result back.

The bodies import what they need when they run, so that `--help` costs no torch. Each returns a
`console.Result`, which `cli` prints; errors are turned into a sentence there, too.
"""
