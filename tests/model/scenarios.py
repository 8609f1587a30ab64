"""The scenarios by name, in their full form and in the reduced one of the tests."""

from __future__ import annotations
from tests.model.session import *
OUT=lambda n: Report(OUTCOME,n)
A=("A",(Report(OUTCOME,b"a1"),Report(EVENT,b"a2")))
A_ONE=("A",(Report(OUTCOME,b"a1"),))
B=("B",(Report(OUTCOME,b"b1"),))
GIVE=Change("A","x",b"1"); TAKE=Change("A","x",None); URGENT=Change("A","y",b"2",urgent=True); TO_B=Change("B","x",b"1")
S=lambda *k: frozenset(k)
FULL={
 "cut": Plot((A,),(GIVE,TAKE),S("cut")),
 "cut2": Plot((A,),(GIVE,URGENT),S("cut")),
 "crash": Plot((A,),(GIVE,URGENT,TAKE),S("crash-parent")),
 "rc": Plot((A,),(GIVE,TAKE),S("restore-child")),
 "rp": Plot((A,),(GIVE,TAKE),S("restore-parent","lose-parent")),
 "two": Plot((A_ONE,B),(GIVE,),S("crash-parent")),
 "clone": Plot((A_ONE,(CLONE,(Report(OUTCOME,b"a1"),Report(OUTCOME,b"c1")))),(),S("clone"),redials=2),
}
