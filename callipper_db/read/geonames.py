"""Dumps of GeoNames (allCountries.txt, cities500.txt, NL.txt): tab-separated, no header, no quoting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from callipper_db.read.layout import Derived, Layout
from callipper_db.read.record import Columns

# http://download.geonames.org/export/dump/readme.txt
HEADER = (
    "geonameid,name,asciiname,alternatenames,latitude,longitude,feature class,feature code,country code,cc2,admin1 code,"
    "admin2 code,admin3 code,admin4 code,population,elevation,dem,timezone,modification date"
)
NAMES = HEADER.split(",")
LINE = re.compile(r"\d+\t[^\t]*\t[^\t]*\t[^\t]*\t-?\d+(\.\d+)?\t-?\d+(\.\d+)?\t[A-Z]?\t[A-Z0-9]*\t")

GROUPS = {
    "A": "Administrative areas",
    "H": "Water",
    "L": "Parks and areas",
    "P": "Populated places",
    "R": "Roads and railways",
    "S": "Buildings and spots",
    "T": "Mountains and islands",
    "U": "Undersea",
    "V": "Vegetation",
}
# From http://download.geonames.org/export/dump/featureCodes_en.txt: places that people go to. Other codes stay codes.
CODES = """
ADM1 state, ADM2 county, ADM3 municipality, ADM4 district, PCLI country, BAY bay, BCH beach, CHN channel, CNL canal,
COVE cove, FLLS waterfall, GLCR glacier, HBR harbour, LGN lagoon, LK lake, MAR marina, MRSH marsh, PND pond, RSV
reservoir, RVR river, SPNG spring, STM stream, SWMP swamp, WLL well, AIRF airfield, AIRH heliport, AIRP airport, AIRQ
abandoned airfield, AMTH amphitheatre, ANS archaeological site, AQC aquaculture site, ARCH arch, ASTR astronomical
station, ATHF athletic field, ATM automatic teller machine, BANK bank, BCN beacon, BDG bridge, BLDG building, BLDO
office building, BP boundary marker, BRKS barracks, BRKW breakwater, BSTN baling station, BTYD boatyard, BUR burial
cave, BUSTN bus station, BUSTP bus stop, CARN cairn, CAVE cave, CH church, CMP camp, CMPL logging camp, CMPMN mining
camp, CMTY cemetery, COMC communication centre, CRRL corral, CSNO casino, CSTL castle, CSTM customs house, CTHSE
courthouse, CTRA atomic centre, CTRCM community centre, CTRF facility centre, CTRM medical centre, CTRR religious
centre, CTRS space centre, CVNT convent, DAM dam, DAMQ ruined dam, DARY dairy, DCKY dockyard, DIP diplomatic facility,
DPOF fuel depot, EST estate, FCL facility, FNDY foundry, FRM farm, FRMT farmstead, FT fort, FY ferry, GATE gate, GDN
garden, GHAT ghat, GHSE guest house, GOSP gas-oil separator plant, GOVL local government office, GRVE grave, HERM
hermitage, HLT halting place, HMSD homestead, HSE house, HSEC country house, HSP hospital, HSPC clinic, HSPD
dispensary, HSPL leprosarium, HSTS historical site, HTL hotel, HUT hut, INSM military installation, ITTR research
institute, JTY jetty, LDNG landing, LEPC leper colony, LIBR library, LNDF landfill, LOCK lock, LTHSE lighthouse, MALL
mall, MFG factory, MFGB brewery, MKT market, ML mill, MLM ore mill, MLSG sugar mill, MLSW sawmill, MLWND windmill,
MLWTR water mill, MN mine, MNMT monument, MOLE mole, MSQE mosque, MSSN mission, MSTY monastery, MTRO metro station,
MUS museum, NOV novitiate, NSY nursery, OBPT observation point, OBS observatory, OILR oil refinery, OPRA opera house,
PAL palace, PGDA pagoda, PIER pier, PKLT car park, PMPO oil pumping station, PO post office, PP police post, PPQ
abandoned police post, PRN prison, PS power station, PSH hydroelectric power station, PSTB border post, PSTC customs
post, PSTP patrol post, PYR pyramid, QUAY quay, RDJCT road junction, REC recreation centre, RECG golf course, RECR
racetrack, REST restaurant, RET store, RHSE rest house, RKRY rookery, RLG religious site, RLGR retreat, RNCH ranch,
RSD railway siding, RSGNL railway signal, RSRT resort, RSTN railway station, RSTNQ abandoned railway station, RSTP
railway stop, RUIN ruin, SCH school, SCHA agricultural school, SCHC college, SCHL language school, SCHM military
school, SCHN maritime school, SCHT technical school, SHPF sheepfold, SHRN shrine, SHSE storehouse, SNTR sanatorium,
SPA spa, SPLY spillway, SQR square, STBL stable, STDM stadium, STNB research base, STNC coast guard station, STNE
experiment station, STNF forest station, STNI inspection station, STNM meteorological station, STNR radio station,
STNS satellite station, STNW whaling station, STPS steps, SWT sewage treatment plant, SYG synagogue, THTR theatre, TMB
tomb, TMPL temple, TNKD cattle dipping tank, TOWR tower, TRAM tram stop, TRANT transit terminal, TRIG triangulation
station, TRMO oil pipeline terminal, TWO temporary work office, UNIV university, USGE government establishment, VETF
veterinary clinic, WALL wall, WALLA ancient wall, WEIR weir, WHRF wharf, WRCK wreck, WTRW waterworks, ZNF free trade
zone, ZOO zoo, AMUS amusement park, AREA area, BTL battlefield, CST coast, FLD field, GRSLD grassland, INDS industrial
area, LCTY locality, MILB military base, NVB naval base, OAS oasis, PRK park, PRT port, RESA agricultural reserve,
RESF forest reserve, RESN nature reserve, RESW wildlife reserve, RGN region, BDLD badlands, CAPE cape, CLF cliff, CRTR
crater, GRGE gorge, HLL hill, HLLS hills, ISL island, ISLET islet, ISLS islands, MT mountain, MTS mountains, PASS
pass, PEN peninsula, PK peak, PLAT plateau, PLN plain, PT point, RDGE ridge, RK rock, SPUR spur, VAL valley, VLC
volcano, PPL town, PPLA regional capital, PPLA2 county capital, PPLA3 district capital, PPLA4 local capital, PPLC
capital city, PPLF farm village, PPLH historical settlement, PPLL village, PPLQ abandoned village, PPLS villages, PPLW
destroyed village, PPLX neighbourhood, PPLR religious settlement, STLMT settlement, RD road, RR railway, ST street,
TNL tunnel, TRL trail, FRST forest, HTH heath, MDW meadow, OCH orchard, TREE tree, VIN vineyard
"""
WORDS = {code: " ".join(words) for code, *words in (entry.split() for entry in CODES.split(",") if entry.strip())}

COLUMNS = Columns(id="geonameid", name="name", category="@category", group="@group", lon="longitude", lat="latitude")


def is_line(line: str) -> bool:
    """Is this a row of a dump?"""
    return line.count("\t") == len(NAMES) - 1 and LINE.match(line) is not None


def layout() -> Layout:
    """The feature code as a word, the feature class as the group."""
    return Layout("GeoNames", COLUMNS, _derive)


def _derive(columns: Mapping[str, Sequence[Any]], rows: int) -> Derived:
    category = [WORDS.get(code, code) for code in columns["feature code"]]
    group = [GROUPS.get(letter) for letter in columns["feature class"]]
    return Derived({"@category": category, "@group": group})
