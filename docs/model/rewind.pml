/* A control database that goes back in time, and the memories outside of it that notice this.
 *
 * One resource lives from its provision to its teardown, on one backend that keeps a memory; the broker keeps another one.
 * A person copies the control database at any moment and puts the copy in its place at any later moment: that begins a
 * new incarnation (`outbox/rewinds.py`). Two workers run jobs and compare, each in a process of its own, so that one may
 * be asleep between any two steps. Each `atomic` is one statement or one call to a place. An event is its number and the
 * line that it was written on, which stands for its hash: each restore begins a new line.
 *
 * Restores of a resource, brakes, a backend that goes back in time, and a worker's own memory are left out.
 */

#ifndef CRASHES
#define CRASHES 0 /* of the two workers together, at any step; a worker that is never scheduled again is as good as dead */
#endif
#ifndef NAPS
#define NAPS 0 /* leases that pass while their worker lives: then the other one has the same job too */
#endif
#ifndef MINUTES
#define MINUTES 1 /* comparisons that only the clock asks for */
#endif
#ifndef RESTORES
#define RESTORES 1
#endif
#ifndef LOSSES
#define LOSSES 1 /* of all that the broker has */
#endif
#define EVENTS 15 /* two bits each */

mtype = { BIRTH, LIVE, CUT, END, GONE };     /* what the control database says: the three in which a job is open, and two */
mtype = { NOTHING, OPEN, SHUT, DESTROYED };  /* the object */

/* -- the control database ------------------------------------------------------------------------------------ */
mtype step = BIRTH;
bool lifted = false;  /* the expiry, by a person */
bool running = false; /* the job; else it is pending */
bool lease = false;
byte fence = 0;
byte epoch = 1;
byte event = 0;
int lines = 0;        /* of each event */
byte compared = 1;    /* the incarnation */
bool hold = false;    /* of cause `rewound` */

/* A copy of it. */
bool copied = false;
mtype step_then;
bool lifted_then, running_then, lease_then, hold_then;
byte fence_then, epoch_then, event_then, compared_then;
int lines_then;

byte incarnation = 1; /* the server's own word */
byte now = 0;         /* the line on which events are written */

/* -- the backend, its memory, and that of the broker ----------------------------------------------------------- */
mtype object = NOTHING;
byte x_epoch = 1, x_event = 0, x_line = 0;
bool x_still = false;
byte b_epoch = 1, b_event = 0, b_line = 0;

byte crashes = CRASHES;
byte naps = NAPS;
byte minutes = MINUTES;
byte restores = RESTORES;
byte losses = LOSSES;
byte held[2] = 0;     /* the fence that each worker believes it holds; 0 is none */

/* -- ghosts: no step depends on them, but the person's under STOPPED ------------------------------------- */
byte top_epoch = 1, top_event = 0, top_line = 0; /* the latest that the backend ever kept */
bool rewound = false;    /* no person has confirmed yet */
bool lacking = false;    /* the copy lacked what the backend had kept */
bool missed = false;     /* it lacked nothing of that, but that the expiry had been lifted */
bool kept = false;       /* a person decided that the object stays */
bool wanted = false;     /* or that its teardown goes on */
bool about[2] = false;   /* whether each worker is between its memory write and its destruction */
byte destroyed = 0;
bool acted = false;      /* on the word of a rewound database that lacks what the backend remembers */
bool cut_in_spite = false; /* of a person's lifting of the expiry */
bool expired = false;
bool unremembered = false;
bool fell = false;
bool released = false;
bool lost = false;
bool news = false;       /* a worker that was asleep told a place of an event that had been lost */
bool false_alarm = false; /* nothing of these since a person confirmed */

#define line(e) ((lines >> (2 * (e))) & 3)
#define has(e, l) (e <= event && line(e) == l)
#define OPEN_JOB (step == BIRTH || step == CUT || step == END)
#define MINE (running && held[me] == fence)
#ifdef COMPARES_ONCE /* as a worker starts, and no more */
#define COMPARED true
#else
#define COMPARED (compared == incarnation)
#endif
#ifdef LATER_IS_FINE
#define KNOWN true
#else
#define KNOWN has(x_event, x_line)
#endif
#ifdef OWN_START_UNASKED
#define OWN_KNOWN true
#else
#define OWN_KNOWN has(e, l)
#endif
#ifdef STOPPED /* those that had written, or they have ended */
#define MAY_RECOVER (hold && !(running && lease) && !about[0] && !about[1])
#else
#define MAY_RECOVER (hold && !(running && lease))
#endif
#ifdef BROKER_ALARMS
#define BROKER_LACKS (b_epoch < p)
#else
#define BROKER_LACKS false
#endif
#define GOES_ON (!hold && COMPARED)
#ifdef EXPIRY_UNCOVERED
#define EXPIRES true
#else
#define EXPIRES GOES_ON
#endif

ltl stands_still { [] (!acted) }
ltl expiry_waits { [] (!expired) }
ltl remembered_first { [] (!unremembered) }
ltl memory_rises { [] (!fell) }
ltl hold_stays { [] (!released) }
ltl destroyed_once { [] (destroyed <= 1) }
ltl no_false_alarm { [] (!false_alarm) }
ltl safe { [] (!acted && !expired && !unremembered && !fell && !released && destroyed <= 1
               && !false_alarm) }
/* What is lost is noticed, and what was confirmed is done. Each run is finite but for these. */
ltl live { [] ((rewound && lacking -> <> (hold || !rewound)) && (wanted -> <> (step == GONE || !wanted))) }
/* These two fail: docs/model/README.md, "Known limits of the memories". */
ltl nothing_is_missed { [] (!cut_in_spite) }
ltl kept_is_kept { [] (!lost) }

inline write() {
    event++;
    assert(event < EVENTS);
    lines = (lines & ~(3 << (2 * event))) | (now << (2 * event))
}

/* A memory offered to the backend: `outbox.memory.offered`. */
inline offer(E, V, L, ok) {
    if
    :: E > x_epoch -> ok = true
#ifdef MEMORY_FALLS
    :: E == x_epoch && !x_still -> ok = true
    :: E < x_epoch || (E == x_epoch && x_still) -> ok = false
#else
#ifdef STILL_IGNORED
    :: E == x_epoch && (V > x_event || (V == x_event && L == x_line)) -> ok = true
    :: E < x_epoch || (E == x_epoch && (V < x_event || (V == x_event && L != x_line))) -> ok = false
#else
    :: E == x_epoch && !x_still && (V > x_event || (V == x_event && L == x_line)) -> ok = true
    :: E < x_epoch || (E == x_epoch && (x_still || V < x_event || (V == x_event && L != x_line))) -> ok = false
#endif
#endif
    fi;
    if
    :: ok ->
        fell = fell || (E == x_epoch && V < x_event);
        news = news || E > epoch || (E == epoch && !has(V, L));
        if
        :: E > x_epoch -> x_still = false
        :: else
        fi;
        x_epoch = E; x_event = V; x_line = L;
        if
        :: restores > 0 && (E > top_epoch || (E == top_epoch && V > top_event)) -> top_epoch = E; top_event = V; top_line = L
        :: else
        fi
    :: else
    fi
}

/* -- the jobs of a worker ---------------------------------------------------------------------------------------- */
inline forget() { held[me] = 0; about[me] = false; e = 0; l = 0; p = 0; old = 0; may = 0; said = 0 }
inline may_die() {
    if
    :: crashes > 0 -> crashes--; forget(); goto idle
    :: true
    fi
}

inline act() {
    acted = acted || old == 2
}

proctype Worker(byte me) {
    byte e, l, p;  /* the event of its start, and the epoch */
    byte old;      /* ghost: its start stands in a rewound database, `missed`: 1, `lacking`: 2 */
    bool may;
    bool said;     /* ghost: the backend remembered its start before it was told to keep still */
end_idle: idle:
    atomic { /* claim, inspect, and start: between these nothing was done yet */
        OPEN_JOB && !running && GOES_ON ->
        if
        :: (step == CUT || step == END) && object != OPEN && object != SHUT -> step = GONE; goto idle
        :: else
        fi;
        running = true; lease = true; fence++;
        held[me] = fence;
        write();
        old = (rewound -> (lacking -> 2 : missed) : 0);
        if
        :: step == BIRTH -> goto birth
        :: step == CUT -> goto cut
        :: step == END -> e = event; l = now; p = epoch
        fi
    };
#ifndef NO_WRITE
    atomic { /* the write before the destruction */
        may_die();
        said = x_epoch < p || (x_epoch == p && !x_still);
        offer(p, e, l, may);
        about[me] = may;
        if
        :: may -> goto destroy
        :: !may && x_epoch == p && !x_still && e < x_event /* another worker's later event, or one that was lost here */
        :: !may && !(x_epoch == p && !x_still && e < x_event) -> forget(); goto idle
        fi
    };
    atomic { /* so it asks the control database for both */
        may_die();
        if
        :: KNOWN && OWN_KNOWN -> unremembered = unremembered || !has(x_event, x_line) || !has(e, l)
        :: !(KNOWN && OWN_KNOWN) -> forget(); goto idle
        fi;
        about[me] = true
    };
#endif
destroy:
    atomic { /* by identity; then complete */
        may_die();
        if
        :: object == OPEN || object == SHUT ->
            act();
            unremembered = unremembered || (!said && (x_still || x_epoch > p));
            lost = lost || kept;
            destroyed++;
            object = DESTROYED
        :: else
        fi;
        if
        :: MINE && step == END -> running = false; step = GONE
        :: else
        fi;
        forget();
        goto idle
    };
birth:
    atomic { /* then activate */
        may_die();
        act();
        if
        :: object == NOTHING -> object = OPEN
        :: else
        fi;
        if
        :: MINE && step == BIRTH -> running = false; step = LIVE
        :: else
        fi;
        forget();
        goto idle
    };
cut:
    atomic { /* then advance */
        may_die();
        act();
        cut_in_spite = cut_in_spite || old == 1;
        if
        :: object == OPEN -> object = SHUT
        :: else
        fi;
        if
        :: MINE && step == CUT -> running = false; step = END
        :: else
        fi;
        forget();
        goto idle
    }
}

/* -- its comparisons ----------------------------------------------------------------------------------------------- */
active [2] proctype Comparer() {
    byte e, l, p, i; /* what it read: event, line, epoch, incarnation */
    bool bad, ok;
end_resting: resting:
    atomic { /* read the control database, ask the places, and compare: `settle` says whether the first still counts */
        if
#ifndef COMPARES_ONCE
        :: !hold && compared != incarnation
#endif
        :: !hold && compared == incarnation && minutes > 0 -> minutes--
        :: hold && !x_still && x_epoch <= epoch -> x_still = true; goto resting /* another worker noticed */
        fi;
        e = event; l = line(event); p = epoch; i = incarnation;
#ifndef NO_COMPARISON
        bad = x_epoch > p || (x_epoch == p && (!has(x_event, x_line) || x_still)) ||
              b_epoch > p || (b_epoch == p && !has(b_event, b_line)) || BROKER_LACKS
#endif
    };
    atomic { /* engage, or settle */
#ifdef LATE_ALARM
        if
        :: bad && !hold -> false_alarm = false_alarm || !(rewound || news); hold = true; write()
#else
        if
        :: bad && !hold && epoch == p -> false_alarm = false_alarm || !(rewound || news); hold = true; write()
#endif
        :: !bad && !hold && epoch == p && incarnation == i -> compared = i; goto remember
        :: else
        fi;
        e = 0; l = 0; p = 0; i = 0; bad = false;
        goto resting
    };
remember:
    atomic {
        offer(p, e, l, ok);
        if
        :: p > b_epoch || (p == b_epoch && e > b_event) -> b_epoch = p; b_event = e; b_line = l
        :: else
        fi;
        e = 0; l = 0; p = 0; i = 0; ok = false;
        goto resting
    }
}

/* -- callers and the clock ------------------------------------------------------------------------------------------- */
active proctype Tenant() {
end_waiting:
    do
    :: atomic { step == LIVE && !lifted && !hold -> lifted = true; write() }
    od
}

active proctype Time() {
end_waiting:
    do
    :: atomic { step == LIVE && !lifted && EXPIRES ->
            expired = expired || (rewound && lacking);
            step = CUT; write(); kept = false }
    :: atomic { running && lease && naps > 0 -> naps--; lease = false }
    :: atomic { running && lease && held[0] != fence && held[1] != fence -> lease = false }
    :: atomic { running && !lease -> running = false }
    od
}

/* -- persons ----------------------------------------------------------------------------------------------------------- */
active proctype Restorer() {
end_waiting:
    do
    :: atomic { !copied ->
            copied = true;
            step_then = step; lifted_then = lifted; running_then = running; lease_then = lease; hold_then = hold;
            fence_then = fence; epoch_then = epoch; event_then = event; compared_then = compared;
            lines_then = lines }
    :: atomic { copied && restores > 0 ->
            restores--;
            missed = lifted && !lifted_then;
            step = step_then; lifted = lifted_then; running = running_then; lease = lease_then; hold = hold_then;
            fence = fence_then; epoch = epoch_then; event = event_then; compared = compared_then;
            lines = lines_then;
            now++;
#ifndef IN_PLACE
            incarnation++;
#endif
            rewound = true; kept = false; wanted = false;
            lacking = !has(top_event, top_line) || top_epoch > epoch;
            missed = missed && !lacking;
            if
            :: restores == 0 -> /* fewer states */
                step_then = 0; lifted_then = 0; running_then = 0; lease_then = 0; hold_then = 0; fence_then = 0;
                epoch_then = 0; event_then = 0; compared_then = 0; lines_then = 0;
                top_epoch = 0; top_event = 0; top_line = 0
            :: else
            fi }
    :: atomic { losses > 0 -> losses--; b_epoch = 0; b_event = 0; b_line = 0 }
    od
}

#ifdef ORDINARY_RELEASE
active proctype Operator() {
end_waiting:
    do
    :: atomic { hold && !released -> released = true; hold = false } /* once, or the events would have no end */
    od
}
#endif

/* `deprovisioner recover`: it keeps all places still, reads them, decides, and ends with a new epoch. */
active proctype Recovery() {
    byte i, top, v, l; /* the incarnation, the latest epoch, and what the places are to keep */
    bool ok;
end_waiting:
    do
    :: atomic { MAY_RECOVER -> i = incarnation };
        atomic { /* survey */
            if
            :: x_epoch <= epoch -> x_still = true
            :: else
            fi;
#ifndef EPOCH_PLUS_ONE
            top = (x_epoch > b_epoch -> x_epoch : b_epoch)
#endif
        };
        atomic { /* decide, and finish */
            if
            :: MAY_RECOVER && incarnation == i ->
                running = false; kept = false; wanted = false;
                if
                :: object == DESTROYED -> step = GONE
                :: object != DESTROYED && (step == CUT || step == END) -> wanted = true /* confirm */
                :: object != DESTROYED && (step == CUT || step == END) -> /* cancel */
                    step = LIVE; lifted = true; kept = true
                :: object != DESTROYED && step == BIRTH /* it goes on */
                :: object != DESTROYED && step == BIRTH -> step = END; wanted = true /* rolled back */
                :: object != DESTROYED && step == LIVE && !lifted -> step = CUT; wanted = true /* it expires */
                :: object != DESTROYED && step == LIVE -> lifted = true; kept = true
                :: object != DESTROYED && step == GONE -> step = LIVE; lifted = true; kept = true /* adopted again */
                fi;
                if
                :: kept && object == SHUT -> object = OPEN
                :: else
                fi;
                epoch = (top > epoch -> top : epoch) + 1;
                write();
                hold = false; compared = incarnation; rewound = false; lacking = false; missed = false;
                top = epoch; v = event; l = now
            :: else -> i = 0; top = 0; goto end_waiting
            fi
        };
        atomic {
            ok = false;
            offer(top, v, l, ok);
            b_epoch = top; b_event = v; b_line = l;
            i = 0; top = 0; v = 0; l = 0; ok = false
        }
    od
}

init {
    atomic { run Worker(0); run Worker(1) }
}
