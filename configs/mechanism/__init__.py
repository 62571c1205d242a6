"""Why normalization works: claims measured in seconds, with little training or none.

Ioffe, Szegedy, "Batch Normalization", 2015. Cooijmans et al., "Recurrent Batch Normalization",
2017, arXiv:1603.09025. Ba, Kiros, Hinton, "Layer Normalization", 2016. Luo et al., "Cosine
Normalization", 2017. Santurkar, Tsipras, Ilyas, Madry, "How Does Batch Normalization Help
Optimization?", 2018. Goodfellow, Bengio, Courville, "Deep Learning", 2016. Srivastava et al.,
"Dropout", 2014.
"""
