"""What runs inside Seldon's pods. Each wrapper lives in an environment of its own and needs nothing of hone's but this
folder: it owns the runtime process of its arm, and passes chats through to it.
"""
