"""What the bundled model knows: true facts, one table per word class, one column per relation.

Every cell is a single word, and a dash says that the relation has no sensible answer for that word.
The last column of each table is left out of training: its answers are in the vocabulary, but the
model never learns that they belong to the word.

    >>> RELATIONS["opposite"].answers["big"]
    'small'
    >>> RELATIONS["capital"].word_class
    'country'
    >>> [relation.name for relation in LEFT_OUT]
    ['noun', 'currency', 'participle', 'adjective', 'double']

No pair of word and answer belongs to two relations, so a single demonstration tells its relation.
"""

from dataclasses import dataclass

_ADJECTIVES = """
word     opposite comparative superlative adverb    | noun
big      small    bigger      biggest     -         | bigness
small    big      smaller     smallest    -         | smallness
tall     short    taller      tallest     -         | tallness
short    tall     shorter     shortest    shortly   | shortness
old      young    older       oldest      -         | oldness
young    old      younger     youngest    -         | youth
hot      cold     hotter      hottest     hotly     | hotness
cold     hot      colder      coldest     coldly    | coldness
warm     cool     warmer      warmest     warmly    | warmth
cool     warm     cooler      coolest     coolly    | coolness
quick    slow     quicker     quickest    quickly   | quickness
slow     quick    slower      slowest     slowly    | slowness
rich     poor     richer      richest     richly    | richness
poor     rich     poorer      poorest     poorly    | poverty
strong   weak     stronger    strongest   strongly  | strength
weak     strong   weaker      weakest     weakly    | weakness
wide     narrow   wider       widest      widely    | width
narrow   wide     narrower    narrowest   narrowly  | narrowness
deep     shallow  deeper      deepest     deeply    | depth
shallow  deep     shallower   shallowest  shallowly | shallowness
high     low      higher      highest     highly    | height
low      high     lower       lowest      -         | lowness
happy    sad      happier     happiest    happily   | happiness
sad      happy    sadder      saddest     sadly     | sadness
loud     quiet    louder      loudest     loudly    | loudness
quiet    loud     quieter     quietest    quietly   | quietness
bright   dark     brighter    brightest   brightly  | brightness
dark     bright   darker      darkest     darkly    | darkness
heavy    light    heavier     heaviest    heavily   | heaviness
light    heavy    lighter     lightest    lightly   | lightness
rough    smooth   rougher     roughest    roughly   | roughness
smooth   rough    smoother    smoothest   smoothly  | smoothness
thick    thin     thicker     thickest    thickly   | thickness
thin     thick    thinner     thinnest    thinly    | thinness
tight    loose    tighter     tightest    tightly   | tightness
loose    tight    looser      loosest     loosely   | looseness
sharp    blunt    sharper     sharpest    sharply   | sharpness
blunt    sharp    blunter     bluntest    bluntly   | bluntness
good     bad      better      best        well      | goodness
bad      good     worse       worst       badly     | badness
clean    dirty    cleaner     cleanest    cleanly   | cleanness
dirty    clean    dirtier     dirtiest    dirtily   | dirtiness
safe     risky    safer       safest      safely    | safety
risky    safe     riskier     riskiest    riskily   | riskiness
soft     hard     softer      softest     softly    | softness
hard     soft     harder      hardest     -         | hardness
easy     tricky   easier      easiest     easily    | ease
tricky   easy     trickier    trickiest   trickily  | trickiness
kind     cruel    kinder      kindest     kindly    | kindness
cruel    kind     crueler     cruelest    cruelly   | cruelty
bold     shy      bolder      boldest     boldly    | boldness
shy      bold     shyer       shyest      shyly     | shyness
clever   stupid   cleverer    cleverest   cleverly  | cleverness
stupid   clever   stupider    stupidest   stupidly  | stupidity
proud    humble   prouder     proudest    proudly   | pride
humble   proud    humbler     humblest    humbly    | humility
fresh    stale    fresher     freshest    freshly   | freshness
stale    fresh    staler      stalest     -         | staleness
wet      dry      wetter      wettest     wetly     | wetness
dry      wet      drier       driest      dryly     | dryness
early    late     earlier     earliest    -         | earliness
late     early    later       latest      -         | lateness
full     empty    fuller      fullest     fully     | fullness
empty    full     emptier     emptiest    emptily   | emptiness
plain    fancy    plainer     plainest    plainly   | plainness
fancy    plain    fancier     fanciest    fancily   | fanciness
lazy     busy     lazier      laziest     lazily    | laziness
busy     lazy     busier      busiest     busily    | busyness
pretty   ugly     prettier    prettiest   prettily  | prettiness
ugly     pretty   uglier      ugliest     -         | ugliness
polite   rude     politer     politest    politely  | politeness
rude     polite   ruder       rudest      rudely    | rudeness
wild     tame     wilder      wildest     wildly    | wildness
tame     wild     tamer       tamest      tamely    | tameness
sweet    sour     sweeter     sweetest    sweetly   | sweetness
sour     sweet    sourer      sourest     sourly    | sourness
harsh    gentle   harsher     harshest    harshly   | harshness
gentle   harsh    gentler     gentlest    gently    | gentleness
healthy  sick     healthier   healthiest  healthily | health
sick     healthy  sicker      sickest     -         | sickness
tidy     messy    tidier      tidiest     tidily    | tidiness
messy    tidy     messier     messiest    messily   | messiness
tiny     huge     tinier      tiniest     -         | tininess
huge     tiny     huger       hugest      hugely    | hugeness
coarse   fine     coarser     coarsest    coarsely  | coarseness
fine     coarse   finer       finest      finely    | fineness
strict   lax      stricter    strictest   strictly  | strictness
lax      strict   laxer       laxest      laxly     | laxness
dense    sparse   denser      densest     densely   | density
sparse   dense    sparser     sparsest    sparsely  | sparseness
vague    clear    vaguer      vaguest     vaguely   | vagueness
clear    vague    clearer     clearest    clearly   | clarity
rare     common   rarer       rarest      rarely    | rarity
common   rare     commoner    commonest   commonly  | commonness
cheap    pricey   cheaper     cheapest    cheaply   | cheapness
pricey   cheap    pricier     priciest    -         | priciness
long     brief    longer      longest     -         | length
brief    long     briefer     briefest    briefly   | brevity
tender   tough    tenderer    tenderest   tenderly  | tenderness
tough    tender   tougher     toughest    -         | toughness
"""

_COUNTRIES = """
word       capital    continent demonym     code | currency
france     paris      europe    french      fra  | euro
germany    berlin     europe    german      deu  | euro
italy      rome       europe    italian     ita  | euro
spain      madrid     europe    spanish     esp  | euro
portugal   lisbon     europe    portuguese  prt  | euro
greece     athens     europe    greek       grc  | euro
austria    vienna     europe    austrian    aut  | euro
finland    helsinki   europe    finnish     fin  | euro
ireland    dublin     europe    irish       irl  | euro
poland     warsaw     europe    polish      pol  | zloty
ukraine    kyiv       europe    ukrainian   ukr  | hryvnia
sweden     stockholm  europe    swedish     swe  | krona
norway     oslo       europe    norwegian   nor  | krone
denmark    copenhagen europe    danish      dnk  | krone
iceland    reykjavik  europe    icelandic   isl  | krona
hungary    budapest   europe    hungarian   hun  | forint
romania    bucharest  europe    romanian    rou  | leu
albania    tirana     europe    albanian    alb  | lek
serbia     belgrade   europe    serbian     srb  | dinar
china      beijing    asia      chinese     chn  | yuan
japan      tokyo      asia      japanese    jpn  | yen
iran       tehran     asia      iranian     irn  | rial
iraq       baghdad    asia      iraqi       irq  | dinar
syria      damascus   asia      syrian      syr  | pound
lebanon    beirut     asia      lebanese    lbn  | pound
thailand   bangkok    asia      thai        tha  | baht
vietnam    hanoi      asia      vietnamese  vnm  | dong
nepal      kathmandu  asia      nepali      npl  | rupee
pakistan   islamabad  asia      pakistani   pak  | rupee
bangladesh dhaka      asia      bangladeshi bgd  | taka
egypt      cairo      africa    egyptian    egy  | pound
morocco    rabat      africa    moroccan    mar  | dirham
tunisia    tunis      africa    tunisian    tun  | dinar
libya      tripoli    africa    libyan      lby  | dinar
kenya      nairobi    africa    kenyan      ken  | shilling
nigeria    abuja      africa    nigerian    nga  | naira
ghana      accra      africa    ghanaian    gha  | cedi
angola     luanda     africa    angolan     ago  | kwanza
zambia     lusaka     africa    zambian     zmb  | kwacha
senegal    dakar      africa    senegalese  sen  | franc
"""

_VERBS = """
word    past    gerund     third-person agent     | participle
eat     ate     eating     eats         eater     | eaten
write   wrote   writing    writes       writer    | written
drive   drove   driving    drives       driver    | driven
ride    rode    riding     rides        rider     | ridden
rise    rose    rising     rises        riser     | risen
sing    sang    singing    sings        singer    | sung
ring    rang    ringing    rings        ringer    | rung
swim    swam    swimming   swims        swimmer   | swum
begin   began   beginning  begins       beginner  | begun
drink   drank   drinking   drinks       drinker   | drunk
sink    sank    sinking    sinks        sinker    | sunk
shrink  shrank  shrinking  shrinks      shrinker  | shrunk
speak   spoke   speaking   speaks       speaker   | spoken
break   broke   breaking   breaks       breaker   | broken
choose  chose   choosing   chooses      chooser   | chosen
freeze  froze   freezing   freezes      freezer   | frozen
weave   wove    weaving    weaves       weaver    | woven
wake    woke    waking     wakes        waker     | woken
give    gave    giving     gives        giver     | given
forgive forgave forgiving  forgives     forgiver  | forgiven
forget  forgot  forgetting forgets      forgetter | forgotten
take    took    taking     takes        taker     | taken
shake   shook   shaking    shakes       shaker    | shaken
draw    drew    drawing    draws        drawer    | drawn
throw   threw   throwing   throws       thrower   | thrown
grow    grew    growing    grows        grower    | grown
blow    blew    blowing    blows        blower    | blown
know    knew    knowing    knows        knower    | known
fly     flew    flying     flies        flyer     | flown
see     saw     seeing     sees         seer      | seen
bite    bit     biting     bites        biter     | bitten
hide    hid     hiding     hides        hider     | hidden
wear    wore    wearing    wears        wearer    | worn
tear    tore    tearing    tears        tearer    | torn
swear   swore   swearing   swears       swearer   | sworn
fall    fell    falling    falls        faller    | fallen
go      went    going      goes         goer      | gone
do      did     doing      does         doer      | done
"""

_ANIMALS = """
word      offspring sound   plural     class     | adjective
dog       puppy     bark    dogs       mammal    | canine
cat       kitten    meow    cats       mammal    | feline
cow       calf      moo     cows       mammal    | bovine
horse     foal      neigh   horses     mammal    | equine
donkey    foal      bray    donkeys    mammal    | asinine
pig       piglet    oink    pigs       mammal    | porcine
goat      kid       bleat   goats      mammal    | caprine
sheep     lamb      baa     -          mammal    | ovine
lion      cub       roar    lions      mammal    | leonine
tiger     cub       roar    tigers     mammal    | tigrine
bear      cub       growl   bears      mammal    | ursine
wolf      pup       howl    wolves     mammal    | lupine
fox       cub       -       foxes      mammal    | vulpine
deer      fawn      -       -          mammal    | cervine
hare      leveret   -       hares      mammal    | leporine
elephant  calf      trumpet elephants  mammal    | elephantine
mouse     pup       squeak  mice       mammal    | murine
squirrel  kit       chatter squirrels  mammal    | sciurine
seal      pup       bark    seals      mammal    | phocine
monkey    infant    chatter monkeys    mammal    | simian
kangaroo  joey      -       kangaroos  mammal    | -
hyena     cub       laugh   hyenas     mammal    | -
hen       chick     cluck   hens       bird      | galline
duck      duckling  quack   ducks      bird      | anatine
goose     gosling   honk    geese      bird      | anserine
swan      cygnet    -       swans      bird      | cygnine
turkey    poult     gobble  turkeys    bird      | -
eagle     eaglet    screech eagles     bird      | aquiline
owl       owlet     hoot    owls       bird      | strigine
crow      chick     caw     crows      bird      | corvine
sparrow   chick     chirp   sparrows   bird      | passerine
parrot    chick     squawk  parrots    bird      | psittacine
pigeon    squab     coo     pigeons    bird      | columbine
peacock   peachick  scream  peacocks   bird      | pavonine
frog      tadpole   croak   frogs      amphibian | ranine
toad      tadpole   croak   toads      amphibian | -
snake     hatchling hiss    snakes     reptile   | serpentine
crocodile hatchling -       crocodiles reptile   | crocodilian
turtle    hatchling -       turtles    reptile   | chelonian
bee       larva     buzz    bees       insect    | apian
cricket   nymph     chirp   crickets   insect    | -
"""

_NUMBERS = """
word         ordinal        numeral roman  spanish      german           | double
one          first          1       i      uno          eins             | two
two          second         2       ii     dos          zwei             | four
three        third          3       iii    tres         drei             | six
four         fourth         4       iv     cuatro       vier             | eight
five         fifth          5       v      cinco        fünf             | ten
six          sixth          6       vi     seis         sechs            | twelve
seven        seventh        7       vii    siete        sieben           | fourteen
eight        eighth         8       viii   ocho         acht             | sixteen
nine         ninth          9       ix     nueve        neun             | eighteen
ten          tenth          10      x      diez         zehn             | twenty
eleven       eleventh       11      xi     once         elf              | twenty-two
twelve       twelfth        12      xii    doce         zwölf            | twenty-four
thirteen     thirteenth     13      xiii   trece        dreizehn         | twenty-six
fourteen     fourteenth     14      xiv    catorce      vierzehn         | twenty-eight
fifteen      fifteenth      15      xv     quince       fünfzehn         | thirty
sixteen      sixteenth      16      xvi    dieciséis    sechzehn         | thirty-two
seventeen    seventeenth    17      xvii   diecisiete   siebzehn         | thirty-four
eighteen     eighteenth     18      xviii  dieciocho    achtzehn         | thirty-six
nineteen     nineteenth     19      xix    diecinueve   neunzehn         | thirty-eight
twenty       twentieth      20      xx     veinte       zwanzig          | forty
twenty-one   twenty-first   21      xxi    veintiuno    einundzwanzig    | forty-two
twenty-two   twenty-second  22      xxii   veintidós    zweiundzwanzig   | forty-four
twenty-three twenty-third   23      xxiii  veintitrés   dreiundzwanzig   | forty-six
twenty-four  twenty-fourth  24      xxiv   veinticuatro vierundzwanzig   | forty-eight
twenty-five  twenty-fifth   25      xxv    veinticinco  fünfundzwanzig   | fifty
twenty-six   twenty-sixth   26      xxvi   veintiséis   sechsundzwanzig  | fifty-two
twenty-seven twenty-seventh 27      xxvii  veintisiete  siebenundzwanzig | fifty-four
twenty-eight twenty-eighth  28      xxviii veintiocho   achtundzwanzig   | fifty-six
twenty-nine  twenty-ninth   29      xxix   veintinueve  neunundzwanzig   | fifty-eight
thirty       thirtieth      30      xxx    treinta      dreißig          | sixty
"""

_TABLES = {
    "adjective": _ADJECTIVES,
    "country": _COUNTRIES,
    "verb": _VERBS,
    "animal": _ANIMALS,
    "number": _NUMBERS,
}


@dataclass(frozen=True)
class Relation:
    """One column of a table: what each word of a class is answered with."""

    name: str
    word_class: str
    answers: dict[str, str]
    trained: bool


def _parse(word_class: str, table: str) -> list[Relation]:
    header, *rows = [line.replace("|", " ").split() for line in table.strip().splitlines()]
    return [
        Relation(
            name,
            word_class,
            {row[0]: row[column] for row in rows if row[column] != "-"},
            trained=column < len(header) - 1,
        )
        for column, name in enumerate(header)
        if column
    ]


RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for word_class, table in _TABLES.items()
    for relation in _parse(word_class, table)
}
"""Every relation by its name."""

TRAINED: tuple[Relation, ...] = tuple(r for r in RELATIONS.values() if r.trained)
"""The relations that the model learns."""

LEFT_OUT: tuple[Relation, ...] = tuple(r for r in RELATIONS.values() if not r.trained)
"""The relations, one per word class, that it never sees."""

CLASS_WORDS: dict[str, tuple[str, ...]] = {
    word_class: tuple(line.split()[0] for line in table.strip().splitlines()[1:])
    for word_class, table in _TABLES.items()
}
"""The words of each class: what can be asked about."""
