"""A stand-in for a Kubernetes cluster with Seldon Core, for tests and for `make demo BACKEND=seldon`.

It is strict where a real one is: resource versions, generations, conflicts, webhooks; and it fails on request.
"""
