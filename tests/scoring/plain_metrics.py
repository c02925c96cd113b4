"""The metrics written straight from their formulas, one neuron and one number at a time: slow, obvious, independent."""

import math
from collections import defaultdict

EPSILON = 1e-8


def mean(values):
    return math.fsum(values) / len(values)


def variance(values, lost=1):
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values) / (len(values) - lost)


def correlation(a, b):
    if max(a) == min(a) or max(b) == min(b):
        return 0.0
    mean_a, mean_b = mean(a), mean(b)
    std_a, std_b = math.sqrt(variance(a, 0)), math.sqrt(variance(b, 0))
    return mean([(x - mean_a) / (std_a + EPSILON) * (y - mean_b) / (std_b + EPSILON) for x, y in zip(a, b, strict=True)])


def by_image(values, image_id):
    groups = defaultdict(list)
    for value, image in zip(values, image_id, strict=True):
        groups[image].append(value)
    return [groups[image] for image in sorted(groups)]


def neuron(prediction, response, image_id, precision):
    """(single trial correlation, correlation to average, FEVE or None, fev or None) of one neuron."""
    r = [float(value) * float(precision) for value in response]
    p = [float(value) for value in prediction]
    single = correlation(r, p)
    repeats = by_image(r, image_id)
    average = correlation([mean(group) for group in repeats], [mean(group) for group in by_image(p, image_id)])
    repeated = [group for group in repeats if len(group) > 1]
    if not repeated:
        return single, average, None, None
    total = variance(r)
    if total == 0:
        return single, average, None, None
    noise = mean([variance(group) for group in repeated])
    fev = (total - noise) / total
    mse = mean([(x - y) ** 2 for x, y in zip(r, p, strict=True)])
    feve = 1 - (mse - noise) / (total - noise) if fev >= 0.15 else None
    return single, average, feve, fev


def oracle(response, image_id, precision):
    """Leave-one-out oracle of one neuron, over trials of repeated images."""
    truth, predicted = [], []
    for group in by_image([float(value) * float(precision) for value in response], image_id):
        for left_out in range(len(group)):
            others = group[:left_out] + group[left_out + 1 :]
            if others:
                truth.append(group[left_out])
                predicted.append(mean(others))
    return correlation(truth, predicted)
