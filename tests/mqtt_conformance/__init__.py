"""The normative statements of MQTT 3.1.1 and 5.0 that concern a server, each with a test in raw bytes.

`statements` has all of them in our words, `cases` the tests of the modules beside it, `document` what
`docs/mqtt-conformance.md` must say. `python -m mqtt_conformance` in `tests` writes that file anew.
"""
