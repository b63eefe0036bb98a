"""What the world is made of: categories of objects, colours, contexts, styles, and what is held out.

A *core* object is drawn under its own name. A *wide* object is only ever called by its category ("a fruit"),
so that the base knows many shapes and a class noun means something. A *held-out* object is never drawn for the
base, its text tower or any adapter: these are the subjects to personalise.
"""

CORE: dict[str, str] = {
    "animal": "cat-face elephant",
    "bird": "owl",
    "fish": "tropical-fish",
    "insect": "butterfly",
    "plant": "cactus",
    "fruit": "red-apple banana",
    "vegetable": "carrot",
    "food": "hamburger",
    "drink": "teapot",
    "ball": "basketball",
    "toy": "teddy-bear",
    "vehicle": "automobile",
    "boat": "sailboat",
    "aircraft": "rocket",
    "building": "house",
    "instrument": "guitar",
    "tool": "umbrella",
    "clothing": "t-shirt",
    "shoe": "high-heeled-shoe",
    "hat": "crown",
    "bag": "backpack",
    "device": "alarm-clock",
    "furniture": "chair",
    "book": "open-book",
}
"""Category to the names drawn under their own name."""

WIDE: dict[str, str] = {
    "animal": "fox tiger-face koala rabbit-face mouse-face bear cow-face snail horse-face zebra wolf "
    "monkey-face hamster hippopotamus giraffe goat camel deer ox polar-bear unicorn bat hedgehog "
    "kangaroo llama sloth otter beaver badger gorilla rhinoceros leopard ram lizard snake crocodile "
    "sauropod poodle dog-face lion panda pig-face frog turtle",
    "bird": "baby-chick parrot swan chicken rooster flamingo dove eagle goose turkey penguin duck",
    "fish": "fish whale dolphin shark squid lobster shrimp blowfish seal jellyfish oyster octopus crab",
    "insect": "honeybee spider ant beetle cricket bug fly mosquito lady-beetle",
    "plant": "tulip rose palm-tree maple-leaf blossom hibiscus four-leaf-clover bouquet potted-plant "
    "deciduous-tree lotus herb fallen-leaf sunflower evergreen-tree mushroom",
    "fruit": "cherries grapes lemon pear tangerine peach mango kiwi-fruit green-apple blueberries melon olive "
    "strawberry watermelon pineapple",
    "vegetable": "ear-of-corn tomato avocado bell-pepper cucumber potato onion garlic hot-pepper pea-pod eggplant "
    "broccoli",
    "food": "cupcake cookie hot-dog taco birthday-cake ice-cream croissant bread pretzel pancakes waffle "
    "sandwich sushi pie french-fries popcorn bacon egg dango soft-ice-cream lollipop candy "
    "chocolate-bar burrito pizza doughnut",
    "drink": "wine-glass beer-mug cup-with-straw cocktail-glass glass-of-milk bubble-tea tropical-drink "
    "tumbler-glass baby-bottle hot-beverage",
    "ball": "tennis pool-8-ball baseball volleyball american-football bowling soccer-ball",
    "toy": "kite yo-yo puzzle-piece nesting-dolls game-die joystick video-game flying-disc wrapped-gift "
    "jack-o-lantern balloon",
    "vehicle": "fire-engine tractor motor-scooter taxi ambulance police-car tram racing-car pickup-truck "
    "delivery-truck motorcycle minibus kick-scooter bus bicycle locomotive",
    "boat": "speedboat ship motor-boat canoe ferry",
    "aircraft": "helicopter flying-saucer small-airplane parachute satellite airplane",
    "building": "tent church factory hospital mosque house-with-garden hut office-building castle",
    "instrument": "trumpet violin saxophone accordion banjo long-drum maracas flute musical-keyboard drum",
    "tool": "scissors pencil magnet wrench screwdriver axe paintbrush toothbrush broom bucket fork-and-knife "
    "magnifying-glass-tilted-left candle flashlight plunger crayon spoon hammer key light-bulb",
    "clothing": "jeans socks coat gloves scarf necktie shorts kimono bikini dress",
    "shoe": "running-shoe hiking-boot womans-sandal ballet-shoes flat-shoe thong-sandal",
    "hat": "billed-cap womans-hat rescue-workers-helmet military-helmet top-hat",
    "bag": "handbag briefcase clutch-bag luggage",
    "device": "television mobile-phone laptop computer-mouse radio telephone microscope stopwatch printer "
    "video-camera headphone camera",
    "furniture": "couch-and-lamp bed bathtub door toilet",
    "book": "closed-book notebook books",
}
"""Category to the names only ever called by their category."""

HELD_OUT: dict[str, str] = {
    "animal": "raccoon cow chipmunk",
    "bird": "peacock hatching-chick",
    "fish": "spouting-whale",
    "insect": "scorpion",
    "plant": "cherry-blossom",
    "fruit": "coconut",
    "vegetable": "ginger-root",
    "food": "cheese-wedge fried-shrimp",
    "drink": "beverage-box mate",
    "toy": "yarn",
    "vehicle": "articulated-lorry auto-rickshaw",
    "boat": "passenger-ship",
    "aircraft": "shooting-star",
    "building": "japanese-castle",
    "instrument": "microphone",
    "tool": "fire-extinguisher",
    "clothing": "lab-coat",
    "shoe": "roller-skate",
    "hat": "graduation-cap",
    "bag": "purse",
    "device": "mantelpiece-clock",
    "book": "notebook-with-decorative-cover",
}
"""Category to the names nobody but the evaluators ever saw."""

SETS = ("noto", "twemoji", "fluent")
"""Sprite sets in the pack: Noto Emoji (Apache-2.0), Twemoji (CC BY 4.0), Fluent Emoji Flat (MIT)."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white")
"""Words for a recoloured object."""

CONTEXTS: dict[str, str] = {
    "beach": "on the beach",
    "snow": "in the snow",
    "meadow": "on the grass",
    "night": "at night",
    "desert": "in the desert",
    "forest": "in the forest",
    "city": "in the city",
    "wood": "on a wooden floor",
    "brick": "in front of a brick wall",
    "space": "in space",
    "pink": "on pink fabric",
    "checker": "on a checkerboard",
    "underwater": "under water",
    "white": "on a white background",
}
"""Context to the words that ask for it."""

STYLES: dict[str, str] = {
    "plain": "",
    "sketch": "in sketch style",
    "pixel": "in pixel art style",
    "neon": "in neon style",
    "poster": "in poster style",
}
"""Style to the words that ask for it; ``plain`` has none."""

HELD_OUT_STYLES: dict[str, str] = {
    "blueprint": "in blueprint style",
    "sepia": "in sepia style",
    "halftone": "in halftone style",
}
"""Styles nobody but the evaluators ever saw."""

RELATIONS: dict[str, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "and": "and",
}
"""Relation of the first object to the second, and the words for it."""


def names(group: dict[str, str]) -> dict[str, str]:
    """Object name to category, in a fixed order.

    Args:
        group: ``CORE``, ``WIDE`` or ``HELD_OUT``.
    """
    return {name: category for category, line in group.items() for name in line.split()}


_SAID = {
    "ear-of-corn": "corn",
    "couch-and-lamp": "couch",
    "pool-8-ball": "billiard ball",
    "tennis": "tennis ball",
    "hot-beverage": "cup of coffee",
    "lady-beetle": "ladybug",
    "honeybee": "bee",
    "evergreen-tree": "tree",
    "automobile": "car",
    "locomotive": "train",
    "motor-scooter": "scooter",
    "red-apple": "apple",
    "mobile-phone": "phone",
}


def said(name: str) -> str:
    """How an object's name is written in a caption: ``"tiger-face"`` becomes ``"tiger"``."""
    return _SAID.get(name, name.removesuffix("-face").replace("-", " "))
