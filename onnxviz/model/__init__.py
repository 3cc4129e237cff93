"""The model as its file describes it: graph, layers, geometry."""
