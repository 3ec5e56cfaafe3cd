"""ConDU: the method, the delta that all tasks share with each task's mask of it, and who answers for an image."""

from gift_train.methods.condu.method import Condu as Condu
