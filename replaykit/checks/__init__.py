"""What may be said of a record: whether it stays, whether its answer is right. A check answers with
a reason.
"""
