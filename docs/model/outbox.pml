/* The protocol of the outbox: how one accepted DELETE becomes one teardown.
 *
 * One resource, one job, two workers. Each `atomic` below is one SQL statement of outbox/jobs.py, or one
 * transaction on the backend; between any two of them every other process may move. So a zombie needs no
 * code of its own: it is a worker that the scheduler leaves standing until its lease has passed.
 *
 * docs/model/run compiles this many times: as it is, and with one guard removed (the #ifdef NO_... mutants).
 * UNOBSERVABLE is the kind of backend where nobody can tell afterwards whether a teardown took place, and
 * where the destructive call knows only a name.
 */

#ifndef MAX_ATTEMPTS
#define MAX_ATTEMPTS 2
#endif
#ifndef CRASHES
#define CRASHES 1 /* of workers, at any step, in all */
#endif
#ifndef FAULTS
#define FAULTS 1 /* of the backend: errors before or after the effect, lies, outages, in all */
#endif
#ifndef REDRIVES
#define REDRIVES 1
#endif

mtype = { ACTIVE, DELETING, DELETED };                     /* resource */
mtype = { NO_JOB, PENDING, RUNNING, STUCK, SUCCEEDED };    /* job; births are not modelled */
mtype = { NOBODY, OURS, NEWCOMER };                        /* who bears the name on the backend */
mtype = { ABSENT, SAME, DIFFERENT, UNAVAILABLE, UNKNOWN }; /* what a look at the backend tells */
mtype = { DONE, FAILED, REFUSED };                         /* what a teardown answers */

/* -- the control database ------------------------------------------------------------------------------------ */
mtype status = ACTIVE;
mtype job = NO_JOB;
byte fence = 0;
byte attempts = 0;
byte started = 0;   /* started_fence; 0 is NULL */
bool lease = false; /* alive by the database's clock; a heartbeat is a lease that does not pass */

/* -- the backend --------------------------------------------------------------------------------------------- */
mtype name = OURS;
bool grave = false; /* our object under its dying name, zz_del_<generation>: the name itself is free again */

/* -- budgets of trouble -------------------------------------------------------------------------------------- */
byte crashes = CRASHES;
byte faults = FAULTS;
byte redrives = REDRIVES;

/* -- ghosts: they decide nothing, the properties read them --------------------------------------------------- */
byte wins = 0;               /* DELETEs that were told "you did it" */
byte destroyed = 0;          /* how often our object was destroyed */
byte calls = 0;              /* destructive calls that reached an unobservable backend */
bool newcomer_harmed = false;
bool deleted_too_early = false;
bool fence_fell = false;
bool final_moved = false;
byte highest = 0;            /* the highest fence ever given */
byte held[2] = 0;            /* the fence each worker believes to hold; 0 is none */
bool inside[2] = false;      /* ... and whether it is between start and outcome */

#ifdef NO_FENCE
#define MINE(w) (job == RUNNING)
#define HELD 1
#else
#define MINE(w) (job == RUNNING && held[w] == fence)
#define HELD 0
#endif
#ifdef NO_LEASE_CHECK
#define MAY_START (MINE(me) && status == DELETING)
#else
#define MAY_START (MINE(me) && status == DELETING && lease)
#endif

#define settled (job == SUCCEEDED || job == STUCK)
#define accepted (status != ACTIVE)
#define inside_by_valid_claim(w) (inside[w] && held[w] != 0 && MINE(w))

ltl one_winner { [] (wins <= 1) }
ltl destroyed_once { [] (destroyed <= 1) }
ltl called_once { [] (calls <= 1) }
ltl newcomer_safe { [] (!newcomer_harmed) }
ltl deleted_means_gone { [] (!deleted_too_early) }
ltl one_valid_claim { [] !(inside_by_valid_claim(0) && inside_by_valid_claim(1)) }
ltl fence_rises { [] (!fence_fell) }
ltl final_is_final { [] (!final_moved) }
ltl safe { [] (wins <= 1 && destroyed <= 1 && calls <= 1 && !newcomer_harmed && !deleted_too_early && !fence_fell
               && !final_moved && !(inside_by_valid_claim(0) && inside_by_valid_claim(1))) }
/* Assumed: every call to the backend ends some day, and troubles are finite (the budgets above). Then every run comes
 * to an end, under a fair scheduler or not, and what is shown is that none ends with an accepted delete unsettled. */
ltl live { [] (accepted -> <> settled) }

inline move(to) {
    final_moved = final_moved || job == SUCCEEDED || status == DELETED;
    job = to
}

/* -- two callers, one resource ------------------------------------------------------------------------------- */
active [2] proctype Delete() {
#ifdef NO_GUARD /* the incident: read, decide, then write; nor is there a unique index */
    if
    :: status != ACTIVE -> goto already
    :: status == ACTIVE
    fi;
    atomic { status = DELETING; move(PENDING); wins++ };
#else
#ifdef NO_ONE_TRANSACTION /* the flip commits, then the row: the API may die in between */
    if
    :: atomic { status == ACTIVE -> status = DELETING }
    :: status != ACTIVE -> goto already
    fi;
    if
    :: goto already
    :: atomic { move(PENDING); wins++ }
    fi;
#else
    if
    :: atomic { status == ACTIVE -> status = DELETING; move(PENDING); wins++ }
    :: status != ACTIVE
    fi;
#endif
#endif
already:
    skip
}

/* -- the backend's verbs ------------------------------------------------------------------------------------- */

/* One look. Whatever it tells may be stale at the worker's next step. */
inline look() {
    if
    :: faults > 0 -> faults--; seen = UNAVAILABLE
#ifdef UNOBSERVABLE
    :: seen = (answer == DONE -> ABSENT : SAME) /* all it knows is what it did itself */
#else
    :: name == OURS || grave -> seen = SAME
    :: name == NEWCOMER && !grave -> seen = DIFFERENT
    :: name == NOBODY && !grave -> seen = ABSENT
#endif
    fi
}

/* What is destroyed here is counted by whom it belonged to. */
inline destroy_by_name() {
    if
    :: name == OURS -> name = NOBODY; destroyed++
    :: name == NEWCOMER -> name = NOBODY; newcomer_harmed = true
    :: name == NOBODY
    fi
}

/* A teardown: one or two effects. Each may fail before it took place, or after; its "done" may be a lie. */
#ifdef UNOBSERVABLE
inline teardown() {
    atomic {
        if
        :: faults > 0 -> faults--; answer = FAILED
        :: calls++; destroy_by_name(); answer = DONE
        :: faults > 0 -> faults--; calls++; destroy_by_name(); answer = FAILED
        fi;
        may_die()
    }
}
#else
#ifdef NO_IDENTITY
inline teardown() {
    atomic { destroy_by_name(); answer = DONE; may_die() }
}
#else
#ifdef LOOK_THEN_ACT /* identity is looked at, but not in the same breath as the effect */
inline teardown() {
    atomic { answer = (name == NEWCOMER -> REFUSED : DONE); may_die() };
    atomic { if :: answer == DONE -> destroy_by_name() :: else fi; may_die() }
}
#else
inline teardown() {
    /* The rename: what was renamed is checked before the commit, so check and effect are one. */
    atomic {
        if
        :: faults > 0 -> faults--; answer = FAILED
        :: faults > 0 -> faults--; answer = DONE; goto look_again /* a lie: nothing was done */
        :: name == OURS -> name = NOBODY; grave = true; answer = DONE
        :: name == NEWCOMER && !grave -> answer = REFUSED
        :: name == NOBODY || (name == NEWCOMER && grave) -> answer = DONE
        fi;
        may_die()
    };
    /* The drop, by the dying name: it holds the generation, so nobody else can have it. */
    atomic {
        if
        :: answer == DONE && grave -> grave = false; destroyed++
        :: answer == DONE && grave && faults > 0 -> faults--; answer = FAILED
        :: answer == DONE && grave && faults > 0 -> faults--; grave = false; destroyed++; answer = FAILED
        :: answer != DONE || !grave
        fi;
        may_die()
    }
}
#endif
#endif
#endif

/* -- the runner ---------------------------------------------------------------------------------------------- */

inline forget() { held[me] = 0; inside[me] = false; before = 0; seen = 0; answer = 0 }

/* A worker may die after any step, and knows nothing when it is started again. */
inline may_die() {
    if
    :: crashes > 0 -> crashes--; forget(); goto idle
    :: true
    fi
}

/* The outcomes. Each is guarded: a worker that lost its claim changes nothing. */
inline complete() {
    if
    :: MINE(me) ->
        deleted_too_early = deleted_too_early || name == OURS || grave;
        move(SUCCEEDED);
        status = DELETED
    :: else
    fi
}
inline stick() {
    if
    :: MINE(me) -> move(STUCK)
    :: else
    fi
}
inline retry() { /* available_at is not modelled: a retry may be due at once, or much later */
    if
    :: MINE(me) && attempts < MAX_ATTEMPTS -> move(PENDING)
    :: MINE(me) && attempts >= MAX_ATTEMPTS -> move(STUCK)
    :: else
    fi
}
inline defer() {
    if
    :: MINE(me) && started != held[me] -> move(PENDING); attempts--
    :: else
    fi
}

proctype Worker(byte me) {
    byte before;  /* started_fence, as the claim read it */
    mtype seen;   /* what the last look told */
    mtype answer; /* what the teardown answered */
end_idle: idle:
    atomic { /* claim: one step, by SKIP LOCKED and the second look at state */
        job == PENDING ->
        move(RUNNING);
        attempts++;
        lease = true;
#ifndef NO_FENCE
        fence++;
#endif
        fence_fell = fence_fell || fence < highest;
        highest = fence;
        held[me] = fence + HELD;
        before = started;
        may_die()
    };
    atomic { /* observe */
#ifdef UNOBSERVABLE
        if
        :: before != 0 -> seen = UNKNOWN
        :: else -> look()
        fi;
#else
        look();
#endif
        may_die()
    };
    atomic {
        if
        :: seen == UNKNOWN -> stick(); forget(); goto idle /* an earlier attempt may have acted */
        :: seen == ABSENT -> complete(); forget(); goto idle
        :: seen == DIFFERENT -> stick(); forget(); goto idle
        :: seen == UNAVAILABLE -> defer(); forget(); goto idle
        :: seen == SAME && MAY_START -> /* start: durable, before the destructive call */
            inside[me] = true;
#ifndef NO_START_MARK
            started = held[me];
#endif
            seen = 0
        :: seen == SAME && !MAY_START -> forget(); goto idle
        fi;
        may_die()
    };
    teardown();
look_again:
    atomic { /* observe again */
        if
        :: answer == DONE -> look()
        :: else
        fi;
#ifdef NO_LOOK_AFTER
        seen = ABSENT;
#endif
        may_die()
    };
    atomic {
        if
        :: answer == REFUSED -> stick()
#ifdef UNOBSERVABLE
        :: answer == FAILED -> stick()
#else
        :: answer == FAILED -> retry()
#endif
        :: answer == DONE && seen == ABSENT -> complete()
        :: answer == DONE && seen == DIFFERENT -> stick()
        :: answer == DONE && (seen == SAME || seen == UNAVAILABLE) -> retry()
        fi;
        forget();
        goto idle
    }
}

/* -- time ---------------------------------------------------------------------------------------------------- */
active proctype Time() {
end_waiting:
    do
    :: atomic { job == RUNNING && lease -> lease = false } /* at any moment: a heartbeat only makes it later */
#ifndef NO_SWEEP
    :: atomic { job == RUNNING && !lease && attempts < MAX_ATTEMPTS -> move(PENDING) }
    :: atomic { job == RUNNING && !lease && attempts >= MAX_ATTEMPTS -> move(STUCK) }
#endif
    od
}

/* -- people -------------------------------------------------------------------------------------------------- */
active proctype Operator() {
    byte saw;
end_waiting:
    do
    :: atomic { job == STUCK && redrives > 0 -> redrives--; saw = fence };
        atomic {
            if
            :: job == STUCK && saw == fence ->
                move(PENDING);
                attempts = 0;
#ifdef FENCE_RESET
                fence = 0;
#endif
            :: true /* leaves it stuck; or was too slow, and is refused */
            fi;
            saw = 0
        }
    od
}

/* Once the name is free, somebody may take it, with an object of another identity. */
active proctype Reuser() {
end_waiting:
    name == NOBODY -> name = NEWCOMER
}

/* Somebody removes our object by hand while the job is stuck. Where a teardown knows only a name (the unobservable
 * kind), that is more than the protocol can bear: the run shows it as a known limit. */
#if !defined(UNOBSERVABLE) || defined(BY_HAND)
active proctype Hand() {
end_waiting:
    atomic { job == STUCK && name == OURS -> name = NOBODY }
}
#endif

init {
    atomic { run Worker(0); run Worker(1) }
}
