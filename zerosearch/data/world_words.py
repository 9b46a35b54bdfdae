"""The words from which the embedded world's invented names are put together.

They are common enough that a small language model spells and copies them without a slip, and no word stands
in two of the lists, so that a name tells what kind of thing it names.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """
    Adam Alan Albert Alex Alice Amy Andrew Angela Anna Anthony Arthur Barbara Ben Betty Brian Carl Carol
    Catherine Charles Chris Christine Claire Daniel David Deborah Dennis Diana Donald Dorothy Edward
    Elizabeth Ellen Emily Emma Eric Eva Frank Fred Gary George Grace Greg Hannah Harold Harry Helen Henry
    Ian Jack James Jane Janet Jason Jean Jennifer Jessica Jim Joan Joe John Joseph Judith Julia Karen Kate
    Keith Kelly Kevin Larry Laura Leon Linda Lisa Louis Lucy Maria Mark Martha Mary Matthew Michael
    Michelle Nancy Nicholas Nicole Oliver Patricia Paul Peter Philip Rachel Ralph Rebecca Richard Robert
    Roger Rose Ruth Ryan Sam Sara Simon Stephen Steve Susan Thomas Tim Tom Tony Victor Walter William
    """
)

LAST_NAMES = _words(
    """
    Adams Allen Anderson Bailey Baker Barnes Bell Bennett Brooks Burns Butler Campbell Carter Clark Cole
    Collins Cook Cooper Davis Edwards Ellis Evans Fisher Foster Gibson Gordon Graham Green Griffin Hall
    Hamilton Harris Harrison Hart Henderson Hill Holmes Howard Hughes Hunt Jenkins Johnson Jones Kennedy
    King Lee Lewis Lloyd Marshall Martin Mason Miller Mitchell Moore Morgan Morris Murphy Murray Myers
    Nelson Newman Norman Owen Palmer Parker Perry Peters Phillips Porter Powell Price Reed Reynolds Rice
    Richardson Roberts Robinson Rogers Ross Russell Scott Shaw Simpson Smith Spencer Stewart Taylor
    Thompson Turner Walker Wallace Ward Watson Webb Wells White Williams Wilson Wood Wright Young
    """
)

COMPANY_FIRST_WORDS = _words(
    """
    Apple Arrow Ash Atlas Black Blue Bridge Bronze Cedar Cherry Clay Copper Coral Cotton Crystal Desert
    Diamond Eagle Falcon Glass Gold Honey Iron Lemon Maple Oak Olive Orange Paper Pearl Pine Pink Purple
    Rainbow Ruby Sand Silk Silver Snow Star Steel Sugar Sun Tiger Water Wheat Willow Wind Wolf Yellow
    """
)

COMPANY_SECOND_WORDS = _words(
    """
    Arch Axis Basket Beam Board Box Brush Button Cable Camera Chain Chair Circuit Clock Cloud Cup Drum
    Engine Fabric Filter Fork Frame Gate Gear Hammer Kitchen Lamp Lens Motor Net Paint Pen Pipe Plate Pump
    Radio Rail Ring Robot Sail Screen Signal Table Tool Tower Wheel
    """
)

BOOK_FIRST_WORDS = _words(
    """
    Ancient Blind Bold Bright Broken Burning Cold Curious Dark Dead Deep Empty False Famous Final Frozen
    Gentle Golden Happy Hidden Holy Last Late Little Lost Narrow Noble Perfect Quiet Rare Red Sacred
    Second Secret Seventh Silent Simple Sleeping Slow Strange Sweet Third Tiny Wild
    """
)

BOOK_SECOND_WORDS = _words(
    """
    Angel Autumn Bird Boat Captain Castle Cat Child Coast Crown Dance Door Dream Echo Farm Father Fire
    Flower Forest Friend Garden Ghost Guest Heart Horse Hour House Island Journey Judge Kingdom Lake
    Letter Lion Map Mirror Moon Morning Mountain Night Ocean Path Prince Promise Queen River Road Sea
    Shadow Ship Sister Sky Soldier Song Spring Stone Storm Street Summer Teacher Tree Valley Village Voice
    Wall Window Winter Witness
    """
)

FOUNDER_TRADES = (
    "a carpenter",
    "a chemist",
    "a designer",
    "a dentist",
    "an engineer",
    "a lawyer",
    "a merchant",
    "a tailor",
)

AUTHOR_TRADES = (
    "a critic",
    "an editor",
    "a historian",
    "a journalist",
    "a novelist",
    "a poet",
    "a reporter",
    "a writer",
)
