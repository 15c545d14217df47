"""An exported model behind HTTP: texts in, answers out. Imports no torch.

`app.py` puts together what answers a request: `door.py` lets it in, `text_routes.py` or
`tensor_routes.py` understands it, `service.py` makes model inputs of it, `batcher.py` runs these
together with others' through `model.py`, and `answers.py` makes answers of the outputs.
`deployment.py` is the same app on a Ray cluster.
"""
