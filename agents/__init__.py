"""Ray actors: thin shells that give the library places to run.

Each module holds a plain class, testable without Ray, and one factory in which name, namespace, restarts and placement
are set. `calls` is the only way in which an actor is called.
"""
