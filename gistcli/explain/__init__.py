"""What a tuned network's clusters look like on a picture.

The maps show where a tuned layer's output tokens agree with the directions into which its update
writes. They do not show why the network decided as it did, and they are no evidence that tuning
taught it to find objects: a random phi under the same picker draws maps that look about as good,
and so does the first principal axis of the same tokens. Most of what one sees is what the
pretrained tokens hold.
"""
