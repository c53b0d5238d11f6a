/* The steps of a teardown, and a restore that takes it back.
 *
 * The model has one resource, which is deleted twice at most, and two workers that run its teardown and its restore. Each
 * `atomic` is one SQL statement of outbox/jobs/, or one change of the backend together with what keeps it from being made
 * too late (`still`, see docs/design.md). Between two of them every other process may move, so a zombie needs no code of
 * its own. Snapshots are not modelled: such a step differs from the quarantine in its effect alone.
 */

#ifndef CRASHES
#define CRASHES 1 /* of the two workers together, at any step */
#endif
#ifndef DELETES
#define DELETES 2
#endif
#ifndef CLAIMS
#define CLAIMS 6 /* of all jobs together */
#endif

mtype = { ACTIVE, DELETING, RESTORING, DELETED };               /* resource */
mtype = { NO_JOB, PENDING, RUNNING, SUCCEEDED, CANCELLED };     /* job; a stuck one is pending as far as this goes */
mtype = { QUARANTINE, WAIT, DESTROY };                          /* step */

/* -- the control database ------------------------------------------------------------------------------------ */
mtype status = ACTIVE;
mtype teardown = NO_JOB;
mtype restore = NO_JOB;
mtype step = QUARANTINE;
bool marked = false; /* started_step = 'destroy' */
bool early = false;  /* purge_at is still to come */
byte fence = 0;      /* of the teardowns; a second one goes on counting, so a claim says which it was */
byte rfence = 0;     /* of the restores */
bool lease = false;
bool rlease = false;

/* -- the backend --------------------------------------------------------------------------------------------- */
bool shut = false; /* in quarantine */
bool gone = false;

byte crashes = CRASHES;
byte deletes = DELETES;
byte claims = CLAIMS;

/* -- ghosts -------------------------------------------------------------------------------------------------- */
bool destroyed_unwanted = false; /* while the resource was active or was being given back */
bool destroyed_early = false;

#define MINE (teardown == RUNNING && held == fence)
#define RMINE (restore == RUNNING && held == rfence)
#ifdef NO_STILL
#define STILL true
#else
#define STILL MINE
#endif
#ifdef NO_STILL_RELEASE
#define RSTILL true
#else
#define RSTILL RMINE
#endif
#ifdef NO_GRACE
#define TIME true
#else
#define TIME (!early)
#endif
#ifdef NO_MARK
#define RESTORABLE (status == DELETING && (teardown == PENDING || teardown == RUNNING))
#else
#define RESTORABLE (status == DELETING && (teardown == PENDING || teardown == RUNNING) && !marked)
#endif

ltl restored_is_kept { [] (!destroyed_unwanted) }
ltl never_early { [] (!destroyed_early) }
ltl active_is_open { [] (status == ACTIVE -> !shut) }
ltl waiting_is_shut { [] ((status == DELETING && teardown == PENDING && step == WAIT) -> shut) }
ltl safe { [] (!destroyed_unwanted && !destroyed_early && (status == ACTIVE -> !shut)
               && ((status == DELETING && teardown == PENDING && step == WAIT) -> shut)) }

/* -- tenants and operators ----------------------------------------------------------------------------------- */
active proctype Delete() {
end_waiting:
    do
    :: atomic { status == ACTIVE && deletes > 0 ->
            deletes--; status = DELETING; teardown = PENDING; step = QUARANTINE; marked = false; early = true }
    od
}

active proctype Restore() {
end_waiting:
    do
#ifdef RESTORE_READS_FIRST /* read, decide, then write */
    :: RESTORABLE -> atomic { teardown = CANCELLED; status = RESTORING; restore = PENDING; early = false }
#else
    :: atomic { RESTORABLE -> teardown = CANCELLED; status = RESTORING; restore = PENDING; early = false }
#endif
    od
}

/* The clock, or a purge. */
active proctype Time() {
end_waiting:
    do
    :: atomic { early -> early = false }
    :: atomic { teardown == RUNNING && lease -> lease = false }
    :: atomic { restore == RUNNING && rlease -> rlease = false }
    :: atomic { teardown == RUNNING && !lease -> teardown = PENDING }
    :: atomic { restore == RUNNING && !rlease -> restore = PENDING }
    od
}

/* -- the runner ---------------------------------------------------------------------------------------------- */
inline may_die() {
    if
    :: crashes > 0 -> crashes--; held = 0; goto idle
    :: true
    fi
}

active [2] proctype Worker() {
    byte held = 0;
end_idle: idle:
    if
    :: atomic { teardown == PENDING && claims > 0 ->
            claims--; teardown = RUNNING; fence++; held = fence; lease = true }; goto tear_down
    :: atomic { restore == PENDING && claims > 0 ->
            claims--; restore = RUNNING; rfence++; held = rfence; rlease = true }; goto give_back
    fi;

tear_down:
    atomic { /* start: it names its step, and at the end of the grace it is the point of no return */
        may_die();
        if
        :: MINE && lease && status == DELETING && step == QUARANTINE
        :: MINE && lease && status == DELETING && step != QUARANTINE && TIME -> step = DESTROY; marked = true; goto destroy
        :: MINE && !(lease && status == DELETING && (step == QUARANTINE || TIME)) -> /* it is given back */
            teardown = PENDING; held = 0; goto idle
        :: !MINE -> held = 0; goto idle
        fi
    };
    atomic { /* quarantine */
        may_die();
        if
        :: STILL -> shut = true
        :: else
        fi
    };
    atomic { /* advance */
        may_die();
        if
        :: MINE && step == QUARANTINE -> teardown = PENDING; step = WAIT
        :: else
        fi;
        held = 0;
        goto idle
    };
destroy:
    atomic { /* by identity, so a second time it finds nothing */
        may_die();
        if
        :: !gone ->
            destroyed_unwanted = destroyed_unwanted || status == ACTIVE || status == RESTORING;
            destroyed_early = destroyed_early || early;
            shut = true; gone = true
        :: gone
        fi
    };
    atomic { /* complete */
        may_die();
        if
        :: MINE -> teardown = SUCCEEDED; status = DELETED
        :: else
        fi;
        held = 0;
        goto idle
    };

give_back:
    atomic { /* start */
        may_die();
        if
        :: RMINE && rlease && status == RESTORING
        :: else -> held = 0; goto idle
        fi
    };
    atomic { /* release */
        may_die();
        if
        :: RSTILL && !gone -> shut = false
        :: else
        fi
    };
    atomic { /* a login, and give_back */
        may_die();
        if
        :: RMINE && !shut -> restore = SUCCEEDED; status = ACTIVE
        :: else
        fi;
        held = 0;
        goto idle
    }
}
