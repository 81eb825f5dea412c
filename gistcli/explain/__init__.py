"""What a tuned network's clusters look like on a picture.

The maps show where a tuned layer's output tokens agree with the directions into which its update
writes. They do not show why the network decided as it did, and they are no evidence that tuning
taught it to find objects: a random phi under the same picker draws maps that look about as good
(mean score of the best map on 100 photos of 20 classes, ViT-Ti, one seed: 0.97 trained, 0.99
random), and so does the first principal axis of the same tokens. What one sees is what the
pretrained tokens hold. The picker assumes one object in the middle; where the middle holds water,
it picks water.
"""
