"""Toy five-sentence stories from a grammar of our own, for those who have no ROCStories at hand.

    python stories.py --data_dir toy/data --text toy/stories.txt

writes unlabelled stories, one a line, and two cloze files in ROCStories' format and under its names.

A story has a person and a topic; it goes well or badly, and the ending follows from topic and outcome:
    Liam hoped to swim across the bay. He swam forty lengths before breakfast. He shaved a second off each turn. Then
    the water was mild and each stroke felt easy.      right: He stood on the top step with a gold medal.
The wrong ending is the right ending of another story with its name and pronouns replaced by this one's. Every ending
is as likely right as wrong, so that an ending alone tells nothing. One wrong ending in twenty has the same topic
and the opposite outcome. Story and ending share few words: which belong together must be learned from other stories.

The unlabelled stories come in chapters, as in a book: the next story often keeps the topic. A language model then
gains from remembering what a story was about after it has ended, which is what a classifier needs to know.

Texts of unlabelled stories, validation file and test file never coincide, whatever the seeds: each belongs to one of
the three by its checksum.
"""

import csv
import os
import random
import re
import sys
import zlib

from datasets import COLUMNS, TEST_FILE, VALID_FILE
from utils import BadInput, OneLineParser, require_ranges, run_script, write_atomically

NAMES = {
    "she": "Aiko Amara Anna Carmen Chloe Divya Elena Fatima Freya Grace Hana Ingrid Leila Lucia Maria Mei Nadia Noor "
           "Olga Priya Rosa Sofia Thandi Yara Zainab",
    "he": "Ahmed Bruno Carlos Chen Daniel Emeka Felix Hiro Hugo Ivan Jamal Jonas Kofi Liam Luis Mateo Mohan Nikos Omar "
          "Oscar Pavel Ravi Samuel Tariq Yusuf",
    "they": "Alex Ariel Jin Kai Noa Quinn Robin Sasha",
}
FORMS = {"she": {"he": "she", "his": "her", "him": "her", "was": "was"},
         "he": {"he": "he", "his": "his", "him": "him", "was": "was"},
         "they": {"he": "they", "his": "their", "him": "them", "was": "were"}}
WISHES = ["wanted to", "hoped to", "decided to"]
TURNS = {True: ["Luckily,", "Then"], False: ["Sadly,", "Then"]}
FEELINGS = {True: ["proud", "happy", "delighted", "thankful"], False: ["sad", "disappointed", "sorry", "gloomy"]}
ENDINGS = ["{{name}} {what}", "{{he}} {what}", "{{he}} felt {feeling} and {what}"]
SAME_TOPIC = 0.05  # share of wrong endings that differ from the right one in the outcome alone
SAME_CHAPTER = 0.75  # how often the next unlabelled story keeps the topic of the one before

# For each topic: the wish, what the person did, the turn for better or worse, and what came of it. Alternatives are
# parted by ; and, within a phrase, stand in [ | ].
TOPICS = """
bread
    to: bake a loaf of [rye|wheat|walnut] bread; make [rolls|bagels|buns] for the whole street; try an old
        [sourdough|bakery] recipe
    did: kneaded the dough on the [table|counter]; mixed [flour|yeast|salt] and warm water in a bowl; tied on an
        apron and lit the [oven|stove]; let the dough rest under a [cloth|towel]
    luck: the kitchen soon smelled of [malt|sesame]; the dough rose to twice its [size|height]; the timer rang
        at just the right [moment|second]
    trouble: the oven was far too [hot|fierce] at the back; a long phone call made everyone forget the
        [timer|clock]; the yeast turned out to be [stale|two years old]
    happy: spread [jam|honey] on a golden slice; cut a crisp [crust|heel] and passed the butter; wrapped the
        fragrant [baguettes|pretzels] in brown paper; dipped a warm [chunk|crumb] in olive oil
    sad: scraped [charcoal|soot] off a blackened tray; chewed on something as hard as a [brick|pebble]; tossed
        the burnt [lumps|cinders] to the pigeons; settled for [crackers|toast] from a packet
garden
    to: grow [tomatoes|beans|pumpkins] behind the house; plant a bed of [lettuce|carrots|peas]; turn the balcony
        into a [vegetable|herb] garden
    did: dug the soil with a [spade|fork] until noon; pressed the [seeds|bulbs|seedlings] into neat rows;
        carried [compost|manure] in a wheelbarrow; watered each [row|pot] before sunrise
    luck: gentle [rain|drizzle] fell on the beds every night; small green [shoots|leaves] pushed through the
        earth; [bees|ladybirds] moved in and kept the bugs away
    trouble: a late [frost|hailstorm] covered the beds in white; [snails|slugs|rabbits] crawled in under the
        fence at night; the [drought|heat] baked the earth as hard as clay
    happy: picked a basket of ripe [produce|vegetables]; tossed a crunchy [salad|coleslaw] for supper; brought
        the neighbours a juicy [harvest|hamper]; filled the pantry with [pickles|chutney]
    sad: pulled up [withered|brown] stalks; found only [stumps|stems] where the crop had been; raked the wilted
        [remains|vines] into a heap; ate [canned|tinned] greens all summer
violin
    to: play the [violin|cello|flute] in the town hall; join the [youth|city|student] orchestra; perform a
        [sonata|concerto|waltz] by heart
    did: practised [scales|arpeggios] for an hour a day; tuned every [string|note] with great patience; marked
        the hard [bars|passages] in pencil; borrowed a [metronome|bow] from the teacher
    luck: the [conductor|pianist] nodded and the melody flowed; every finger found its [note|chord] without a
        slip; the last [tune|movement] rang out clear and sweet
    trouble: a [string|peg] snapped in the first movement; the sheet music blew off the [stand|platform]; cold
        fingers missed one [note|chord] after another
    happy: bowed deeply to a roar of [applause|cheers]; played an [encore|extra] for the standing crowd;
        clutched a [bouquet|bunch] of roses backstage; signed a [programme|poster] for a small admirer
    sad: slipped out through the [backstage|side] exit; heard only a polite [cough|clap] or two; locked the
        instrument in its [case|velvet]; hid behind the [curtain|organ] with burning cheeks
football
    to: score a goal in the [cup|league] final; play for the village [football|soccer] team; be the
        [goalkeeper|captain|striker] on Sunday
    did: ran [laps|sprints] around the muddy field; laced the [boots|cleats] and put on shin guards; practised
        [penalties|corners|passes] after work; studied how the other [defenders|forwards] moved
    luck: a perfect [pass|cross] landed right in front of the net; the other goalkeeper [slipped|stumbled] on
        the wet grass; the [header|shot] flew past every defender
    trouble: the [kick|shot] bounced off the post; the referee showed a red [card|flag] at half-time; the other
        team [equalised|scored] twice in a row
    happy: held up the silver [trophy|pitcher]; rode on the shoulders of the [fans|supporters]; sang the
        [anthem|club song] all the way to the pub; hung the winners' [pennant|jersey] above the door
    sad: congratulated the [winners|champions] with a stiff handshake; stared at the [scoreboard|result] in the
        empty stadium; sat in the [dressing|locker] room with a towel overhead; kicked an empty [can|bottle]
        across the car park
camping
    to: camp in the [pine|birch] woods for a weekend; spend a night in a [tent|hammock] by the lake; go camping
        in the [canyon|valley]
    did: packed a sleeping bag and a [lantern|torch]; hammered the tent [pegs|poles] into the ground; gathered
        dry [twigs|firewood|kindling]; read the [trail|camp] map by candlelight
    luck: the woods stayed [dry|calm] and an owl called softly; the [firewood|kindling] caught with a single
        match; a friendly [ranger|warden] showed the best clearing
    trouble: the tent [tore|leaked] in a midnight storm; a [raccoon|fox] ran off with the food sack; the
        [sleeping bag|mattress] fell into a muddy stream
    happy: roasted [marshmallows|chestnuts] over the glowing embers; told [ghost|spooky] tales beside the
        flames; woke to [birdsong|mist] and fresh cocoa; counted [shooting|falling] stars until dawn
    sad: shivered in the [car|van] until daybreak; drove home [soaked|drenched] before sunrise; wrung out two
        pairs of soggy [socks|blankets]; checked into a [motel|hostel] with chattering teeth
fishing
    to: catch a [trout|salmon|pike] for supper; go fishing on the [river|pier] with an old rod; try the new
        [reel|lure] at the pond
    did: dug up [worms|grubs] for bait; rowed the small [boat|dinghy] to a quiet bay; tied a [hook|float] to the
        line; sat on the [bank|jetty] with the rod
    luck: the float [dipped|bobbed] and the line went tight; something silver [leaped|flashed] beside the boat;
        the rod [bent|bowed] almost to the water
    trouble: the line [tangled|caught] in the reeds; a [heron|seal] frightened everything away; the bait
        [box|bucket] tipped over the side
    happy: grilled a fresh [fillet|catch] with lemon; measured [scales|fins] against a ruler and grinned; posed
        for a [snapshot|picture] with the giant; smoked two [perch|carp] over alder chips
    sad: came home with an empty [bucket|net]; opened a tin of [sardines|tuna] with a sigh; invented a tale
        about the one that [escaped|vanished]; ordered a [cheese|mushroom] sandwich instead
driving
    to: pass the driving [test|exam]; get a driving [licence|permit]; learn to drive the family [van|hatchback]
    did: practised parking between two [cones|barrels]; learned the road [signs|rules] by heart; adjusted the
        [mirrors|seat] and the belt; took extra [lessons|hours] on the ring road
    luck: the examiner [smiled|nodded] at every turn; the traffic was [light|slow] on every road; the
        [parking|reversing] went smoothly at the first try
    trouble: the [engine|motor] stalled at a crossing; a back wheel [hit|climbed] the kerb; the van rolled
        through a red [light|signal]
    happy: took the [highway|motorway] to the coast; drove {his} parents to the [cinema|mall]; showed everyone a
        laminated [photo|document]; waved the brand new [keys|plastic]
    sad: rode the [bus|tram] home in silence; booked another [attempt|appointment] for March; handed the wheel
        back to the [instructor|coach]; walked to work for one more [season|winter]
swimming
    to: win the hundred metres at the [pool|baths]; swim across the [bay|strait]; race in the
        [butterfly|backstroke|freestyle]
    did: swam forty [lengths|laps] before breakfast; bought new [goggles|fins]; shaved a second off each
        [turn|dive]; did [push-ups|stretches] on the tiles
    luck: the [start|dive] was the fastest of all; the water was [smooth|mild] and each stroke felt easy; the
        rival in lane [four|six] tired early
    trouble: a [cramp|pain] in the calf came halfway; the goggles filled with [water|chlorine]; a
        [jellyfish|wave] struck in the middle of the race
    happy: stood on the [podium|top step] with a gold medal; saw a new [record|best] time on the board; splashed
        and hugged the [coach|lifeguard]; kissed the shiny [disc|ribbon] for the cameras
    sad: limped to the [showers|bench] in a bathrobe; touched the wall in [last|seventh] place; watched the
        medal [ceremony|parade] from afar; rubbed the sore [leg|muscle] with ointment
dog
    to: find the lost [puppy|terrier|spaniel]; bring the runaway [poodle|beagle|collie] home; search the park
        for the missing [hound|dog]
    did: called its name along the [canal|hedges]; pinned [posters|notices] to each lamp post; rattled a box of
        dog [biscuits|treats]; asked the [postman|jogger] about paw prints
    luck: a faint bark came from the [bushes|cellar]; a [boy|farmer] rang about a muddy collar; the [paw
        prints|tracks] led straight to a shed
    trouble: the tracks ended at a busy [road|station]; a wrong [call|tip] led to the far end of town; night
        fell and no [bark|howl] was heard
    happy: got a wet [lick|nose] right across the face; brushed [burrs|mud] from a wagging tail; carried the
        furry [bundle|friend] to its basket; clipped on the [leash|lead] and laughed
    sad: left the [porch|hall] lamp burning all night; looked at the empty [kennel|cushion]; put the chewed
        [slipper|ball] away; cried over an untouched [bone|dish]
cat
    to: get the [kitten|tomcat] down from the tree; win the trust of a stray [cat|tabby]; take in the shy
        [siamese|ginger] cat
    did: put out a saucer of [milk|cream]; leaned a [ladder|plank] against the trunk; sat very still on the
        [lawn|steps]; held up a piece of [herring|chicken]
    luck: two green eyes came [closer|nearer] bit by bit; the [whiskers|ears] twitched at the smell of fish; a
        soft [paw|head] touched the open hand
    trouble: a [dog|truck] made a terrible noise nearby; sharp [claws|teeth] shot out in fear; the saucer
        [fell|broke] with a crash
    happy: listened to the sound of loud [purring|snoring]; shared the [armchair|pillow] with a warm ball of
        fur; tied a tiny [bell|bow] on a red collar; cuddled the sleepy [visitor|creature] on the sofa
    sad: stuck a [plaster|bandage] on a scratched thumb; saw a [striped|fluffy] tail vanish over the wall;
        called the fire [brigade|engine] with a sigh; dabbed [iodine|alcohol] on a bleeding wrist
bicycle
    to: repair the rusty [bicycle|tandem]; cycle to the [border|lighthouse] and back; build a bike from old
        [parts|scrap]
    did: oiled the [chain|gears] with care; patched the [tyre|tube] with glue; tightened the
        [brakes|pedals|spokes]; pumped up both [wheels|tyres]
    luck: the [gears|pedals] turned without a squeak; a [mechanic|cyclist] stopped and lent a spanner; the
        [wind|breeze] blew from behind on every hill
    trouble: the [chain|pedal] came off on a steep hill; a [nail|thorn] went through the back tyre; both
        [brakes|spokes] broke near the bridge
    happy: coasted [downhill|homeward] with both arms spread; rang the [bell|horn] and sped along the lane;
        raced the [swallows|tram] along the avenue; zoomed past a [traffic|queue] jam with a wave
    sad: pushed the wreck [home|uphill] on foot; thumbed a [lift|ride] from a lorry; nursed a bruised
        [knee|elbow]; sold the heap to a [junkyard|scrapyard]
painting
    to: paint a [portrait|landscape|harbour] in oils; show some [watercolours|sketches] at the gallery; enter a
        [mural|drawing] contest
    did: mixed [blue|ochre|crimson] on a wooden palette; stretched the canvas on a [frame|board]; cleaned the
        [brushes|knives] in turpentine; sat at the [easel|window] to catch the light
    luck: the [light|sunset] was just right and each stroke worked; the colours [glowed|shone] more every day;
        the gallery [owner|keeper] stepped closer and stared
    trouble: a jar of [ink|varnish] spilled across the canvas; the [paint|oil] dried in ugly cracks; the colours
        turned to a muddy [grey|brown]
    happy: sold the masterpiece to a [collector|museum]; read a glowing [review|critique] in the arts pages;
        pocketed a cheque from a rich [buyer|banker]; admired the picture in a gilded [mount|hall]
    sad: turned the thing to face the [wall|attic]; covered the mess with [white|whitewash]; tore up months of
        [effort|labour]; gave up art for [photography|pottery]
chess
    to: win the chess [tournament|championship]; beat {his} uncle at [chess|checkers]; play against the
        [regional|visiting] master
    did: studied [openings|endgames] until midnight; set out the [pawns|pieces] in the library; solved
        [puzzles|problems] from a thick book; learned a sly trap with the [knight|bishop]
    luck: the opponent overlooked the [knight|rook]; one quiet [move|sacrifice] opened up the board; the other
        side's [king|queen] had nowhere to hide
    trouble: the [queen|rook] was lost to a simple trick; the [clock|flag] ran down too fast; one careless
        [pawn|move] opened the centre
    happy: said checkmate in a [whisper|clear voice]; climbed ten places in the [rankings|ratings]; {was} asked
        for a [rematch|interview]; took the wooden [cup|crown] to school
    sad: tipped over a wooden figure and [resigned|surrendered]; offered a limp [hand|smile] across the squares;
        replayed the [blunder|defeat] all night; finished near the [bottom|foot] of the table
curry
    to: cook a [lentil|pumpkin|chickpea] curry for six guests; invite the neighbours to a [spicy|vegetarian]
        dinner; prepare a [stew|biryani] for the feast
    did: chopped [onions|garlic|ginger] into tiny cubes; ground [cumin|coriander|cardamom] in a mortar; stirred
        the pot with a [ladle|spoon]; soaked the [rice|lentils] overnight
    luck: a wonderful [scent|aroma] drifted up the stairs; a pinch of [saffron|tamarind] made all the
        difference; the sauce [thickened|simmered] just as it should
    trouble: the lid fell off the [chilli|pepper] jar; the [gas|flame] went out without a sound; someone had
        swapped the sugar and the [salt|soda]
    happy: served second [helpings|platefuls] to everybody; wrote the [instructions|secret] down for three fans;
        saw each [dish|plate] wiped clean; heard [compliments|praise] between mouthfuls
    sad: phoned for a [pizza|takeaway]; poured [gallons|jugs] of water for the coughing company; tipped the
        whole [mess|disaster] down the drain; opened a bag of [crisps|peanuts] for hungry faces
exam
    to: pass the [algebra|geometry|physics] exam; get a good mark in [chemistry|biology|history]; finish the
        [statistics|grammar] course
    did: filled a notebook with [formulas|diagrams]; revised [chapters|tables] at the kitchen desk; made a stack
        of [flash|memory] cards; formed a [study|homework] group
    luck: all the [questions|problems] looked familiar; the [hardest|longest] chapter did not come up; there was
        [ample|plenty of] time to check each answer
    trouble: the [calculator|pen] stopped working; the first [page|question] made no sense; the [alarm|clock]
        failed and the hall was closed
    happy: stuck the top [grade|score] on the fridge; won a [scholarship|bursary] for college; threw a square
        [cap|hat] in the air; showed {his} mother a [diploma|certificate]
    sad: signed up for the [resit|retake] in autumn; hid the [report|envelope] under a mattress; saw {his} name
        on the [failed|wrong] list; hired a patient [tutor|coach]
birthday
    to: throw a surprise [party|picnic] for {his} sister; celebrate a [fortieth|tenth] birthday; plan a
        [costume|garden] party for a friend
    did: blew up [balloons|streamers]; sent out thirty [invitations|cards]; wrapped a [present|parcel] in silver
        paper; strung [lanterns|garlands] across the yard
    luck: nobody had let the secret [slip|out]; all the guests [arrived|hid] in time; a [band|clown] turned up
        with a tuba
    trouble: somebody gave the secret [away|out]; half of the guests had the [flu|measles]; the
        [streamers|balloons] blew into the street
    happy: danced until the [lamps|candles] burned low; watched eyes fill with happy [tears|wonder]; sliced a
        three-layer [cake|gateau]; led a round of [singing|hurrahs]
    sad: ate leftover [icing|cake] alone; swept up the unused [confetti|paper hats]; put the [soda|lemonade]
        back in the crate; cancelled the [caterer|musicians]
train
    to: visit {his} [grandmother|cousin] by train; take the [night|express] train to the capital; cross the
        country by [rail|sleeper]
    did: bought a [ticket|pass] at the station; packed a [suitcase|rucksack] with care; found a [seat|berth] by
        the aisle; studied the [timetable|railway map]
    luck: the [conductor|steward] held the door a moment longer; the [engine|locomotive] left right on time; the
        other [travellers|passengers] shared their plums
    trouble: the [carriage|engine] broke down between two stations; the conductor announced a [strike|delay];
        the ticket was for the wrong [day|platform]
    happy: fell into {his} relatives' [arms|embrace]; reached the [terminus|metropolis] in time for tea; saw the
        [cathedral|skyline] rise at last; hurried to the family [reunion|table]
    sad: spent the night on a cold [bench|floor]; missed the whole [gathering|weekend]; telephoned to
        [apologise|explain]; watched the [tail lights|rails] fade in the fog
airport
    to: fly to [Lisbon|Nairobi|Lima] for a holiday; see the [pyramids|temples|fjords] at last; spend two weeks
        on a tropical [island|atoll]
    did: renewed the [passport|visa] in good time; weighed the [luggage|suitcase] twice; learned some phrases
        from a [guidebook|tape]; queued at the airline [counter|desk]
    luck: the [pilot|captain] announced a smooth flight; a [upgrade|window seat] came free at the gate; the
        clouds [parted|thinned] over the runway
    trouble: the [passport|visa] was still on the kitchen shelf; a [storm|blizzard] closed the runway; the
        airline lost the [luggage|suitcase]
    happy: strolled through [spice|flower] markets in sandals; sent [postcards|pictures] of turquoise water;
        sipped [coconut|mango] juice under a palm; swayed on a [camel|ferry] at dusk
    sad: unpacked the [sunscreen|sandals] at home; argued at the [insurance|complaints] office; slept on
        [plastic|metal] chairs in the terminal; toured the [suburbs|local zoo] instead
skiing
    to: ski down the black [slope|run]; learn to [snowboard|ski] in a week; win the downhill [race|slalom] in
        the Alps
    did: rented [skis|poles] and a helmet; waxed the [board|edges] by the stove; rode the chair [lift|tow] to
        the summit; practised [curves|braking] on the nursery slope
    luck: fresh [powder|snow] had fallen overnight; the slope was [wide|empty] and the curves came easily; a
        patient [trainer|guide] led the way down
    trouble: the [slope|run] was a sheet of bare ice; one [binding|ski] came loose on a bend; a white
        [fog|cloud] hid the gates
    happy: clinked mugs of hot [chocolate|punch] in the lodge; glided into the valley like a [bird|feather];
        earned a [golden|enamel] snowflake badge; whooped past the [chalet|finish] line
    sad: spent the week with a leg in [plaster|bandages]; came to rest in a [drift|snowbank] with a groan; {was}
        brought down on a [stretcher|sled]; sulked by the [fireplace|sauna] with a book
bees
    to: keep [bees|hives] on the roof; start a small [apiary|bee yard]; look after the [abbey's|school's] beehives
    did: painted the wooden [boxes|hives] yellow; put on a [veil|hood] and long gloves; planted
        [clover|lavender|thyme] nearby; puffed [smoke|sage] around the frames
    luck: the [queen|swarm] settled in at once; the [lime|acacia] trees were covered in blossom; the frames grew
        [heavy|fuller] by the week
    trouble: the whole swarm [rose|flew off] in a dark cloud; [mites|wasps] got into the frames; the
        [glove|veil] had a small hole
    happy: filled forty jars with golden [honey|nectar]; sweetened the tea with [home-made|amber] syrup; sold
        scented [candles|beeswax]; licked the sticky [comb|knife]
    sad: rubbed [vinegar|ointment] on a swollen lip; stacked the silent, [empty|deserted] crates; counted nine
        painful [stings|welts]; went back to [sugar|molasses] for breakfast
kite
    to: fly a [silk|paper|dragon] kite on the hill; make a kite for the spring [festival|fair]; launch a
        [box|diamond] kite at the beach
    did: glued [bamboo|balsa] sticks into a cross; painted a [tiger|rainbow] on the cloth; tied ribbons to the
        long [tail|cord]; wound the [string|twine] on a spool
    luck: a steady [wind|breeze] swept over the hill; the string [hummed|sang] as it ran out; the wind
        [lifted|caught] it at the first run
    trouble: there was not a breath of [wind|air]; the string [snapped|broke] with a twang; a sudden
        [gust|squall] tore the cloth
    happy: watched it shrink to a [dot|speck] among the clouds; made it [loop|swoop] with the gulls; let the
        children [steer|hold] the soaring beauty; pointed at the bright shape high in the [heavens|blue]
    sad: freed the rags from a [treetop|chimney]; saw it dangle from a power [cable|line]; trudged home with a
        bunch of [splinters|shreds]; fished the pulp out of a [ditch|pond]
novel
    to: write a [detective|love|fantasy] novel; publish a book of [poems|fables]; finish the [memoir|saga]
        before winter
    did: typed ten [pages|paragraphs] each dawn; filled the margins with [notes|commas]; read each
        [chapter|dialogue] aloud; invented a [villain|heroine] with a secret
    luck: the words [poured|flowed] and the plot came together; an [editor|agent] read it in one sitting; the
        [heroine|villain] seemed to write herself
    trouble: the [plot|ending] made no sense at all; the [computer|typewriter] swallowed half the chapters;
        thirty [editors|agents] sent back the pages
    happy: saw it in a [bookshop|shop] window; autographed [copies|hardbacks] for a long queue; topped the
        [bestseller|holiday] list; toasted the [printer|publisher] with cider
    sad: stuffed the [manuscript|draft] in a drawer; used the [stack|bundle] as a doorstop; burned the
        [typescript|heap] in the grate; stared at a blank [screen|sheet]
theatre
    to: act in the school [play|musical]; play [Hamlet|Juliet|the witch] on stage; direct a [comedy|tragedy] at
        the playhouse
    did: learned the [lines|verses] on the bus; sewed a [cloak|costume] from curtains; put on [make-up|a wig] in
        a cramped cellar; rehearsed the [duel|balcony] scene
    luck: each [line|joke] came out loud and clear; the [spotlight|scenery] worked like a dream; the front row
        [laughed|gasped] in all the right places
    trouble: the second [act|line] was suddenly forgotten; a [cardboard|painted] castle fell over; the wig
        [slid|dropped] off during the duel
    happy: took five curtain [calls|bows]; caught a [rose|bouquet] from the balcony; celebrated with the
        [cast|crew] till two; heard the audience shout [bravo|for more]
    sad: fled to the [wings|cloakroom]; heard the [hecklers|critics] snigger; stood [frozen|speechless] while
        the prompter hissed; begged the [understudy|stand-in] to take over
robot
    to: build a [robot|drone] for the contest; program a machine that can [walk|sort bricks]; enter a robot in
        the [science|engineering] fair
    did: soldered [wires|circuits] under a lamp; wrote [code|software] until late; printed plastic [gears|arms];
        tested each [sensor|motor] twice
    luck: the [motors|sensors] hummed and a green light came on; the code ran without a single [bug|fault]; the
        machine [turned|lifted] exactly as planned
    trouble: a [circuit|fuse] blew with a puff of smoke; the machine drove in [circles|reverse]; the code
        [crashed|froze] in front of the jury
    happy: {was} offered an [apprenticeship|internship] by a factory; shook hands with a famous
        [inventor|astronaut]; filed a [patent|blueprint] for the gadget; starred in a [technology|gadget]
        broadcast
    sad: unplugged the [dead|useless] contraption; picked up [screws|bolts] from the carpet; put the tin
        [body|head] in the recycling; carried a box of [rubble|junk] to the exit
"""


def read_topics(text):
    """Return {topic: {'to' | 'did' | 'luck' | 'trouble' | 'happy' | 'sad': [phrases]}} of the table TOPICS."""
    topics, current = {}, None
    for line in text.replace("\n        ", " ").strip().splitlines():  # deeper lines continue the one before
        if line.startswith(" "):
            kind, phrases = line.strip().split(": ", 1)
            current[kind] = phrases.split("; ")
        else:
            current = topics[line] = {}
    return topics


class Grammar:
    """Draws stories and cloze rows; equal seeds give equal draws."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.topics = read_topics(TOPICS)

    def phrase(self, phrases):
        """Draw one of the phrases and, in it, one of each [a|b]."""
        return re.sub(r"\[([^]]*)\]", lambda m: self.random.choice(m[1].split("|")), self.random.choice(phrases))

    def person(self):
        """Draw a name with its pronouns."""
        pronoun = self.random.choice(["she"] * 3 + ["he"] * 3 + ["they"])
        return FORMS[pronoun] | {"name": self.random.choice(NAMES[pronoun].split())}

    def beginning(self, topic, good, person):
        """Draw four sentences."""
        t = self.topics[topic]
        wish = f"{{name}} {self.random.choice(WISHES)} {self.phrase(t['to'])}"
        deeds = [f"{{he}} {self.phrase([did])}" for did in self.random.sample(t["did"], 2)]
        turn = f"{self.random.choice(TURNS[good])} {self.phrase(t['luck' if good else 'trouble'])}"
        return [sentence(part, person) for part in (wish, *deeds, turn)]

    def ending(self, topic, good, person):
        """Draw the fifth sentence."""
        form = self.random.choice(ENDINGS)
        what = self.phrase(self.topics[topic]["happy" if good else "sad"])
        return sentence(form.format(what=what, feeling=self.random.choice(FEELINGS[good])), person)

    def topic(self):
        """Draw a topic."""
        return self.random.choice(list(self.topics))

    def draw(self, part, topic):
        """Draw the four sentences of a story of one of the parts 'text', 'valid', 'test'.

        Returns:
            (sentences, good, person).
        """
        while True:
            good, person = self.random.random() < 0.5, self.person()
            sentences = self.beginning(topic, good, person)
            if part_of(sentences) == part:
                return sentences, good, person

    def cloze_row(self, part, number, answer):
        """Draw one row in the order of datasets.COLUMNS; answer is 1 or 2."""
        topic = self.topic()
        sentences, good, person = self.draw(part, topic)
        other, other_good = topic, not good
        if self.random.random() >= SAME_TOPIC:
            other = self.random.choice([t for t in self.topics if t != topic])
            other_good = self.random.random() < 0.5
        endings = [self.ending(topic, good, person), self.ending(other, other_good, person)]
        return [f"toy-{part}-{number}", *sentences, *(endings if answer == 1 else endings[::-1]), str(answer)]


def sentence(words, person):
    """Return a phrase as a sentence: person filled in, a or an, a capital, a full stop."""
    words = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])(?!uni|one|use|eu)", r"\1n ", words.format(**person))
    return words[0].upper() + words[1:] + "."


def part_of(sentences):
    """Return 'text', 'valid' or 'test': the part to which a story with these four sentences belongs."""
    return ("text", "text", "text", "text", "text", "text", "valid", "valid", "test", "test")[
        zlib.crc32(" ".join(sentences).encode()) % 10]


def unlabelled(n, seed):
    """Return n distinct five-sentence stories in chapters, each story one string."""
    grammar, stories = Grammar(f"text {seed}"), {}
    topic = grammar.topic()
    while len(stories) < n:
        if grammar.random.random() >= SAME_CHAPTER:
            topic = grammar.topic()
        sentences, good, person = grammar.draw("text", topic)
        stories[" ".join([*sentences, grammar.ending(topic, good, person)])] = None
    return list(stories)


def cloze(n, seed, part="valid"):
    """Return n rows in the order of datasets.COLUMNS with distinct beginnings; as many answers 1 as 2.

    Args:
        part: 'valid' or 'test'; rows of the two never share a story.
    """
    grammar = Grammar(f"{part} {seed}")
    answers = [1, 2] * (n // 2) + [1] * (n % 2)
    grammar.random.shuffle(answers)
    rows = {}
    while len(rows) < n:
        row = grammar.cloze_row(part, len(rows), answers[len(rows)])
        rows.setdefault(" ".join(row[1:5]), row)
    return list(rows.values())


def write_cloze_csv(path, rows):
    """Write cloze rows in ROCStories' CSV format."""
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([COLUMNS, *rows])


def _first_rows(path):
    """The second row of a CSV file, in a list; nothing where it cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as f:
            return [row for row in list(csv.reader(line for _, line in zip(range(2), f, strict=False)))[1:] if row]
    except (OSError, ValueError, csv.Error):
        return []


def write_data_dir(data_dir, n_valid_file=1871, n_test_file=1871, seed=7):
    """Write the two cloze files into a folder, under ROCStories' names.

    Raises:
        BadInput: a file of that name is there which this script did not write; it may be the real one.
    """
    for name in (VALID_FILE, TEST_FILE):
        path = os.path.join(data_dir, name)
        if os.path.exists(path) and not any(row[0].startswith("toy-") for row in _first_rows(path)):
            raise BadInput(f"{path}: is there already and is no toy data; give another --data_dir")
    write_cloze_csv(os.path.join(data_dir, VALID_FILE), cloze(n_valid_file, seed, "valid"))
    write_cloze_csv(os.path.join(data_dir, TEST_FILE), cloze(n_test_file, seed, "test"))


def write_text(path, n, seed):
    """Write n unlabelled stories to a file, one a line."""
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.writelines(story + "\n" for story in unlabelled(n, seed))


def main(argv=None):
    """Write what the options ask for; see the top of this file."""
    p = OneLineParser(prog="stories.py", description="Write toy stories and cloze files.")
    p.add_argument("--data_dir", help="folder for the two cloze files")
    p.add_argument("--text", help="file for the unlabelled stories")
    p.add_argument("--n_text", type=int, default=24000, help="unlabelled stories")
    p.add_argument("--n_cloze", type=int, default=1871, help="rows of each cloze file")
    p.add_argument("--seed", type=int, default=7, help="fixes the draws")
    args = p.parse_args(argv)
    if not args.data_dir and not args.text:
        raise BadInput("nothing to do: give --data_dir, --text or both")
    require_ranges(args, {"n_text": (1, 1_000_000), "n_cloze": (2, 100_000)})
    if args.data_dir:
        write_data_dir(args.data_dir, args.n_cloze, args.n_cloze, args.seed)
    if args.text:
        write_text(args.text, args.n_text, args.seed)


if __name__ == "__main__":
    sys.exit(run_script(main))
