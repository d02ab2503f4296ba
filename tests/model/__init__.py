"""An executable specification of the task protocol, and the checker that visits every state it allows."""
