"""AVIF files that Pillow cannot write, what Pillow makes of such files, and headers that lie."""

import base64
import io
import zlib

from PIL import Image, ImageOps

# What Pillow cannot write: small AVIF files of 10 and 12 bits, made with libavif, zlib over base 85.
DEEP = [
    zlib.decompress(base64.b85decode(text))
    for text in (
        # 10 bits, 4:4:4
        (
            "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^zOdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPvlxL`E;A=T8N_h`@fjhajKV<74P<L%X6B"
            "{A)k*<5sZ3B_Vwr)VbAC=f*siS1f}#Q-?VVYWoDZZ$GK&jRq4p^Nu>=qc6l7Lpf&`ekxVV56Phy#&bEAR-NJuz2Kc^@!Ij4ew2?*I5fI{M#1"
            "-URk0UgG|$kfaNa#?OlVu=s~7l(zQec1*Dg-oMAjKYVK)f!zz;(=COjBwaAFD?6>%EPo($-7U7@^MDJRO59B_R=nFIQqlaHgV<Ucll-$4zCY"
            ")eERarVmk)L{Ne!7iJN=;EB(Ht^eUe1y2^c9#Ez@8E#=9f{m*ul*Ge?RIcD8h|Mdye-hk6O3t4Ng)|@&rYtGyb&%;5xbVF1ckM9%bY07O?c6"
            "hUH&mD#TpPBl@R~pQ=o;bJR*c_>#)$fiLw(=@;7HNstbU(HH&v^1GdnLQZ^=*<r-bbz|v2^^r>*>8ip-TFhZl9mMf1GVv*lIZIs>vaLlmE8I"
            "JHs-T-_Yc}b);KJKs&!7IJ4lxjh4(_?bYWrCdOQuxpk6O1ON$qs$2"
        ),
        # 12 bits, 4:4:4
        (
            "c-muNV30{GsVqn=%S>Yc0uY^>nP!-qnF!*)&P^>zWPkw0jFg-rD4U@mGr5ET4e%9YmgIt2j6f`xnUkLk;<$kLj1W;qejw%pvNbX@^U~mIrGT"
            "7NCMYkl%)rn&KPMk-S5{_0Q2~(l&MZjI2ht*$#RaKQ`xJm!0*D0)GAlAc0?a%-JV1&kvCPo9(IEjOB%GX|Q<RsSQ^CLlglr8!A@R(DT$rDL4"
            "r5_tYGwhl#Bx&-ON1D>I3on@%eHWENGTZoV-!A=tk&o%5)ZWNVuZt{dFfaGwJ4vexvZ9YIbQu`*Kxj!2WHBzk2|yeeE`FxqZwD2P1$AdSKnY"
            "|DpA<2;_zS^f3Mw(O$~`=Gp1BLJzq5~W=dke-g(`gf}|CSje3)(HCmn68+B^~^RlleFGWoMDCxSnZf@OUx!yCrv5E4z5|5Q?bKUY+Gs-iVat"
            "6E1)2|5H?yVm5$JXS}&F#<ZCM@E~E&rWiu(|kwTXN(L!TBHd9{#cGl){{bQ@(HC@!MZ{>Tz!(U*_fVyGEQ5M_W0jZekU?owG4ixMo&oe!^_A"
            "R_zz}&j_xlJpaB|^>5{q%SoTUW^CxGkP0dLF!>F;vVqAq0GINr;Q"
        ),
        # 10 bits, 4:2:0, with alpha
        (
            "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xz0Yiz}S|XT9U{B0g4$ZIYm%5LqTS82?HA7E66O#1+y4|SSK?lKN-YvVPIeaivTf`Kal<n<b!"
            "#P>wxq^Aa=^k%mX_CEF%Tvq%uLxNh~ukbk5Jo2iuI0VS>mw<`iTkLS%|k(_rpMEUm}^+X=GuaArYK0g#@XS&*C$q(w4|3sRvf6@XX*hy@BVD"
            ">6X>%v@YtK#C`^%+R@!!3QKHoSdIil$V@S0W^_`fvo}JQHXLzB*ifx0Slnj&LBo<QJz(9L25dfaI#9yOfIl0t}HG|%`LV9s>#gBOf0IjN`yI"
            "IF0&vP7S2G2voJC>voJ8RFtWC>18rH7o03=}#K6TWA!uJ_YBZHmfT8hgQ}^3_QiqIw&oH>YS!J%8ijCeIsT|kku1|!&Ys~*K-|p5nKH;7n*S"
            "}9xTz6Tl?!<i8=MTPyYN;%DzkK7*Gt=9eD>;&SuYTpaT>3&}UVriJHR`Q%XV*z<_ez$X&-)qGvaDj(v&*}U??kHy?6_$C-HwA#!7=JMALGN&"
            "XKG(c{(Xr}%y}6pp<jFQbX8XGrU_C8|9}qU1UYbpfPjgD(Q8K0<Lzy!E&`5n4x$Yg+?Qut2J|ia;gq$y^<vJeNo)s99wcZ9ovpM>+0Xy5*z7"
            "^kd83(M>-J66E01qFp4_I#lIGg=#D1&#vgxYp&s!*a`(NJM@S)msZtGJ2^Xt6JnNHoCec$*&s8LtS$5(SQ??o`a()FlW<?Fjyx4h+$6W7jz5"
            "5kjX+0XwfAEEgDzC@oCSKOY<6~a=C?-F-bY&)~9ZS}Xat}{}M&7!j8Be!2lYWel7?B#)*2M(LAOP%2s_Ap6bWc^g`q(uIuIp(jX2ToeP<iCR"
            "0-1xJ$3*1%m50(Y&dZzX1!M?vTUiI4;1snh~1r#~"
        ),
    )
]
# Says that it is 100 x 100, and holds a frame of 16384 x 16384, which takes 520 MB to decode.
LARGE_INSIDE = zlib.decompress(
    base64.b85decode(
        "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^nKdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPvlxL`E;A=T8N_h`@fjhajKT~I-10!SMrL"
        "MS8eFXukdw*;<t3IG7&_<Y<b&<X$}A`<0Mg!>1<Cn9S|qc$AQfs~3KR<zWL9K?1eiHEIDiySVws_HqdX5tNH{q^rzkHur-FeA2-zBdLgJYPx"
        "iCKg9mc}Q)XV~Om3nSUVu=s~7q|TP`v3p`E@ENf<uK|MlVJY)@S$t@|NlQWe>lJpcK(!J)Kz&tUlu9n);Uj<<2nCxWblf`?s#sXJ%4Z4RRxc"
        "WDzlQ4dd?m74*K|nC)Do(Pw(>GC3l`P3*YI}Hn)iHN&PU>>ZwHYlvOAHgx4tYwtjA09e(u0sJWx&j+#4a?x?w==8l>>YVN4Hqvld#E{%)@07"
        "+|ZM*"
    )
)


def claiming(data: bytes, width: int, height: int) -> bytes:
    """The same AVIF with another size in its header."""
    at = data.index(b"ispe") + 8
    return data[:at] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[at + 8 :]


def by_pillow(data: bytes) -> Image.Image:
    """What Pillow alone makes of it: upright, on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGBA"), mask=image.convert("RGBA"))
    return white
