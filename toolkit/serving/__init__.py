"""An exported model behind HTTP: texts in, answers out. Imports no torch.

`app.py` puts together what answers a request: `door.py` lets it in, `text_routes.py` or
`tensor_routes.py` understands it, `model.py` makes model inputs of it and answers of the outputs,
`batcher.py` runs it together with others. `deployment.py` is the same app on a Ray cluster,
`load.py` measures any such server from outside.
"""
