"""Word lists that the skills draw from. Common words only, so that a small model knows them."""

from __future__ import annotations

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

NAMES = tuple(
    """
    Ada Ben Carla David Emma Frank Grace Henry Iris Jack Karen Leo Mary Noah Olga Peter Quinn Rosa Sam
    Tina Umar Vera Walter Yusuf Zoe Alice Bruno Clara Daniel Ellen Felix Hannah Jonas Kate Lucas Maya Nina
    Oscar Paul Ruth
    """.split()
)

CITIES = tuple(
    """
    Paris London Rome Madrid Lisbon Vienna Oslo Dublin Prague Athens Cairo Tokyo Delhi Toronto Boston
    Chicago Seattle Sydney Nairobi Lima
    """.split()
)

# Words with 4 to 9 letters, for spelling and ordering.
WORDS = tuple(
    """
    acorn anchor apron arrow autumn balloon banana barrel basket beacon blanket bottle branch bridge
    bucket button cabin candle canvas carpet castle cellar cherry circle coffee cotton cradle cricket
    curtain dagger desert dinner doctor dragon drawer eagle engine fabric falcon farmer feather fiddle
    finger flower forest fountain garden ginger glacier guitar hammer harbor hazel helmet honey island
    ivory jacket jungle kettle kitchen ladder lantern leather lemon letter lizard lumber magnet marble
    meadow mirror mountain napkin needle nickel notebook ocean onion orchard oyster paddle palace paper
    parrot pebble pencil pepper pillow planet pocket potato puzzle rabbit ribbon river rocket saddle
    school shadow shelter silver spider spring station summer sunset tablet teacher temple thunder ticket
    timber tomato tunnel turtle valley velvet village violin wagon walnut water whistle window winter
    wizard yellow
    """.split()
)

_CATEGORIES = {
    "animal": "dog horse lion goat rabbit tiger sheep wolf camel bear zebra donkey monkey elephant",
    "fruit": "apple banana cherry grape lemon mango peach pear plum melon orange strawberry apricot",
    "colour": "red blue green yellow purple brown pink white black grey violet",
    "tool": "hammer saw screwdriver wrench drill chisel pliers shovel rake axe",
    "vehicle": "car bus train truck bicycle tram van motorcycle taxi tractor lorry",
    "instrument": "piano violin guitar flute drum trumpet cello harp clarinet banjo",
    "garment": "shirt jacket trousers sock hat glove scarf coat dress skirt sweater",
    "furniture": "table chair sofa bed desk wardrobe bookcase stool bench cupboard",
    "country": "France Spain Italy Germany Brazil Japan Canada Egypt India Norway Kenya Peru",
    "vegetable": "carrot potato onion cabbage spinach broccoli pea leek turnip cauliflower",
    "profession": "doctor teacher nurse lawyer baker farmer pilot plumber carpenter engineer",
    "sport": "football tennis hockey golf rugby basketball cricket swimming boxing rowing",
}
CATEGORIES = {kind: tuple(words.split()) for kind, words in _CATEGORIES.items()}

ANTONYMS = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("high", "low"), ("happy", "sad"), ("light", "dark"),
    ("old", "young"), ("rich", "poor"), ("strong", "weak"), ("hard", "soft"), ("early", "late"),
    ("full", "empty"), ("open", "closed"), ("clean", "dirty"), ("wet", "dry"), ("loud", "quiet"),
    ("thick", "thin"), ("deep", "shallow"), ("wide", "narrow"), ("near", "far"), ("true", "false"),
    ("right", "wrong"), ("good", "bad"), ("long", "short"), ("cheap", "expensive"),
    ("easy", "difficult"), ("safe", "dangerous"), ("brave", "cowardly"), ("polite", "rude"),
    ("sharp", "blunt"), ("smooth", "rough"), ("sweet", "bitter"), ("tight", "loose"), ("alive", "dead"),
    ("ancient", "modern"), ("always", "never"), ("begin", "end"), ("win", "lose"), ("buy", "sell"),
    ("push", "pull"), ("give", "take"), ("accept", "refuse"), ("arrive", "leave"), ("remember", "forget"),
    ("laugh", "cry"), ("love", "hate"), ("build", "destroy"), ("rise", "fall"), ("success", "failure"),
    ("war", "peace"), ("friend", "enemy"), ("day", "night"), ("summer", "winter"), ("north", "south"),
    ("inside", "outside"), ("above", "below"), ("top", "bottom"), ("first", "last"), ("front", "back"),
)  # fmt: skip

# (singular, plural, two forms that a learner might write)
PLURALS = (
    ("child", "children", ("childs", "childes")), ("mouse", "mice", ("mouses", "meese")),
    ("foot", "feet", ("foots", "feets")), ("tooth", "teeth", ("tooths", "teeths")),
    ("goose", "geese", ("gooses", "geeses")), ("man", "men", ("mans", "mens")),
    ("woman", "women", ("womans", "womens")), ("ox", "oxen", ("oxes", "oxs")),
    ("leaf", "leaves", ("leafs", "leafes")), ("knife", "knives", ("knifes", "knifs")),
    ("wolf", "wolves", ("wolfs", "wolfes")), ("wife", "wives", ("wifes", "wifs")),
    ("life", "lives", ("lifes", "lifs")), ("shelf", "shelves", ("shelfs", "shelfes")),
    ("thief", "thieves", ("thiefs", "thiefes")), ("loaf", "loaves", ("loafs", "loafes")),
    ("city", "cities", ("citys", "cityes")), ("baby", "babies", ("babys", "babyes")),
    ("lady", "ladies", ("ladys", "ladyes")), ("berry", "berries", ("berrys", "berryes")),
    ("party", "parties", ("partys", "partyes")), ("country", "countries", ("countrys", "countryes")),
    ("story", "stories", ("storys", "storyes")), ("fly", "flies", ("flys", "flyes")),
    ("box", "boxes", ("boxs", "boxies")), ("fox", "foxes", ("foxs", "foxen")),
    ("bus", "buses", ("buss", "busies")), ("dish", "dishes", ("dishs", "dishies")),
    ("church", "churches", ("churchs", "churchies")), ("glass", "glasses", ("glasss", "glassies")),
    ("watch", "watches", ("watchs", "watchies")), ("brush", "brushes", ("brushs", "brushies")),
    ("potato", "potatoes", ("potatos", "potatoies")), ("tomato", "tomatoes", ("tomatos", "tomatoies")),
    ("hero", "heroes", ("heros", "heroies")), ("echo", "echoes", ("echos", "echoies")),
    ("day", "days", ("daies", "dayes")), ("key", "keys", ("keies", "keyes")),
    ("toy", "toys", ("toies", "toyes")), ("monkey", "monkeys", ("monkies", "monkeyes")),
    ("cat", "cats", ("cates", "catses")), ("book", "books", ("bookes", "bookies")),
    ("tree", "trees", ("treeses", "treies")), ("window", "windows", ("windowes", "windowies")),
    ("house", "houses", ("hice", "housen")), ("sheep", "sheep", ("sheeps", "sheepes")),
    ("deer", "deer", ("deers", "deeres")), ("fish", "fish", ("fishs", "fishies")),
    ("person", "people", ("persones", "peoples")), ("crisis", "crises", ("crisises", "crisiss")),
)  # fmt: skip

# (larger unit, smaller unit, how many of the smaller make one larger)
UNITS = (
    ("metres", "centimetres", 100), ("kilometres", "metres", 1000), ("hours", "minutes", 60),
    ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7), ("kilograms", "grams", 1000),
    ("litres", "millilitres", 1000), ("centimetres", "millimetres", 10), ("feet", "inches", 12),
    ("yards", "feet", 3), ("years", "months", 12), ("pounds", "ounces", 16), ("dozens", "single pieces", 12),
    ("dollars", "cents", 100), ("decades", "years", 10), ("gallons", "quarts", 4),
    ("tonnes", "kilograms", 1000),
)  # fmt: skip

HOBBIES = tuple(
    """
    painting running chess cooking gardening hiking reading singing swimming photography knitting dancing
    cycling fishing
    """.split()
)

FOODS = tuple(
    """
    pasta soup pizza curry salad pancakes sushi tacos stew dumplings risotto lasagne noodles omelettes
    """.split()
)
