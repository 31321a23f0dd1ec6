"Make an UltraMNIST data set: a few digits on a large black canvas, labelled by their sum."
import argparse
from patchgd_nb.datasets.ultramnist import make_ultramnist

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument('--out', required=True, help='folder to make')
    p.add_argument('--train', type=int, default=1000, help='images to train with')
    p.add_argument('--valid', type=int, default=200, help='images to validate with, of other digits')
    p.add_argument('--image-size', type=int, default=4000, help='pixels a side; 512 in the small setting')
    p.add_argument('--min-sum', type=int, default=0, help='smallest sum')
    p.add_argument('--max-sum', type=int, default=27, help='largest sum; 9 in the small setting')
    p.add_argument('--mnist', help="folder of MNIST's original IDX files; downloaded unless given, scikit-learn's digits where there is no internet")
    p.add_argument('--seed', type=int, default=0, help='the same seed makes the same images')
    p.add_argument('--workers', type=int, help='processes; one per core unless given')
    p.add_argument('--format', choices=('png', 'jpeg'), default='png', help='of the images')
    print(make_ultramnist(**vars(p.parse_args())))
