"""The control loop: events in, instructions out, and nothing else.

`loop.ControlLoop` is a pure state machine; `service.ControlService` makes it durable; `cycle.LoopCycle` turns it
against a world. None of them knows Ray.
"""
