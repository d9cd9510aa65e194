package worker

import (
	"context"
	"errors"
	goruntime "runtime"
	"strconv"
	"sync"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// errGone says that the monitor is gone and nothing can be recorded.
var errGone = errors.New("cannot record: the monitor is gone")

// recorder has decisions written by the monitor. One message at a time is on
// its way; what is decided meanwhile goes with the next, so that a busy gateway
// writes few and large ones. Whoever adds the first record sends it himself, and
// whoever hears the answer sends the next: nobody is woken up for that.
type recorder struct {
	ctx  context.Context
	conn *control.Conn

	mu     sync.Mutex
	n      uint64    // number of the last record sent
	urgent []pending // refusals wait behind them, so that a flood starves nobody
	others []pending
	sent   []pending        // on their way, numbered up to n
	list   []control.Record // those in sent; whoever made them so sends them
	due    bool             // what nobody waits for is to be sent soon
	folds  folds
}

// pending is a record to be written, and who waits for that.
type pending struct {
	record control.Record
	done   chan error // capacity 1; nil: nobody
}

func newRecorder(ctx context.Context, conn *control.Conn) *recorder {
	return &recorder{ctx: ctx, conn: conn}
}

// write returns when the record is in the log, or why it is not.
func (r *recorder) write(rec control.Record) error {
	return r.await(rec, &r.urgent)
}

// note has the record written soon: with the next that somebody waits for, or
// after noteDelay.
func (r *recorder) note(rec control.Record) {
	r.mu.Lock()
	r.urgent = append(r.urgent, shortened(pending{record: rec}))
	due := r.due
	r.due = true
	r.mu.Unlock()
	if !due {
		time.AfterFunc(noteDelay, func() {
			r.mu.Lock()
			r.due = false
			r.mu.Unlock()
			r.send()
		})
	}
}

// refuse has a refusal written: at once, or as one of many.
func (r *recorder) refuse(rec control.Record) error {
	if r.folded(rec) {
		return nil
	}
	return r.await(rec, &r.others)
}

// noteRefusal does the same and waits for nothing.
func (r *recorder) noteRefusal(rec control.Record) {
	if !r.folded(rec) {
		r.add(pending{record: rec}, &r.others)
	}
}

func (r *recorder) await(rec control.Record, queue *[]pending) error {
	done := make(chan error, 1)
	r.add(pending{rec, done}, queue)
	select {
	case err := <-done:
		return err
	case <-r.ctx.Done():
		return errGone
	}
}

func (r *recorder) add(p pending, queue *[]pending) {
	r.mu.Lock()
	*queue = append(*queue, shortened(p))
	r.mu.Unlock()
	goruntime.Gosched() // whoever is about to add one comes along
	r.send()
}

func shortened(p pending) pending {
	if len(p.record.Detail) > maxDetail {
		p.record.Detail = p.record.Detail[:maxDetail]
	}
	return p
}

// send sends what has gathered, unless some are on their way.
func (r *recorder) send() {
	for r.ctx.Err() == nil {
		list, n := r.batch()
		if len(list) == 0 {
			return
		}
		err := r.conn.Send(control.ToMonitorFromWorker{Records: &control.Records{N: n, List: list}})
		if err == nil {
			return
		}
		r.answered(&control.Written{N: n, Fault: err.Error()})
	}
}

// batch takes the next records, unless some are on their way.
func (r *recorder) batch() ([]control.Record, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sent) > 0 {
		return nil, 0
	}
	room := maxBatch
	r.sent = take(r.sent[:0], &r.urgent, &room)
	r.sent = take(r.sent, &r.others, &room)
	r.list = r.list[:0]
	for i := range r.sent {
		r.list = append(r.list, r.sent[i].record)
	}
	r.n += uint64(len(r.list))
	return r.list, r.n
}

// take moves what there is room for from a queue to list. One always goes.
func take(list []pending, queue *[]pending, room *int) []pending {
	q, k := *queue, 0
	for k < len(q) && (*room > 0 || len(list)+k == 0) {
		*room -= weight(&q[k].record)
		k++
	}
	list = append(list, q[:k]...)
	rest := copy(q, q[k:])
	clear(q[rest:])
	*queue = q[:rest]
	if cap(q) > maxIdle && rest == 0 {
		*queue = nil // a flood is over
	}
	return list
}

// weight is the length of a record in a message, from above.
func weight(r *control.Record) int {
	return 256 + len(r.Host) + len(r.Detail) + len(r.Rule) + len(r.Method)
}

// written is the monitor's answer. What has gathered meanwhile follows.
func (r *recorder) written(w *control.Written) {
	r.answered(w)
	r.send()
}

func (r *recorder) answered(w *control.Written) {
	var err error
	if w.Fault != "" {
		err = errors.New(w.Fault)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	done := len(r.sent)
	if w.N < r.n { // the first of several answers
		done = max(0, done-int(min(r.n-w.N, uint64(done))))
	}
	for _, p := range r.sent[:done] {
		if p.done != nil {
			p.done <- err
		}
	}
	rest := copy(r.sent, r.sent[done:])
	clear(r.sent[rest:])
	r.sent = r.sent[:rest]
}

// folds counts refusals, second by second.
type folds struct {
	second int64
	all    int // refusals in it
	byKey  map[string]*fold
	timer  bool // a flush is due
}

// fold is what is known of the refusals of one host and port in one second.
type fold struct {
	n     int
	more  int            // not recorded one by one
	first control.Record // of those
}

// folded tells whether a refusal is one of too many to be recorded by itself.
func (r *recorder) folded(rec control.Record) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now().Unix()
	if now != r.folds.second {
		r.flush()
		r.folds.second, r.folds.all = now, 0
	}
	key := rec.Host + ":" + strconv.Itoa(int(rec.Port))
	if _, ok := control.ProtoNumber(rec.Proto); ok && rec.Proto != "tcp" {
		key += "/" + rec.Proto // a packet; connections are told apart by what they say
	}
	f := r.folds.byKey[key]
	if f == nil && len(r.folds.byKey) >= maxFolds {
		key = ""
		f = r.folds.byKey[key]
	}
	if f == nil {
		if r.folds.byKey == nil {
			r.folds.byKey = map[string]*fold{}
		}
		f = &fold{}
		r.folds.byKey[key] = f
	}
	f.n++
	r.folds.all++
	if f.n <= foldKey && r.folds.all <= foldAll && key != "" {
		return false
	}
	if f.more == 0 {
		f.first = rec
		if key == "" {
			f.first.Host, f.first.Port, f.first.Reason, f.first.Detail = "", 0, string(policy.TooMany), "refusals of many hosts and ports"
		}
	}
	f.more += max(rec.Count, 1)
	if !r.folds.timer {
		r.folds.timer = true
		time.AfterFunc(time.Second, func() {
			r.mu.Lock()
			r.folds.timer = false
			r.flush()
			r.mu.Unlock()
			r.send()
		})
	}
	return true
}

// flush turns what was folded into records. r.mu is held.
func (r *recorder) flush() {
	for _, f := range r.folds.byKey {
		if f.more > 0 {
			f.first.Count = f.more
			r.others = append(r.others, pending{record: f.first})
		}
	}
	r.folds.byKey = nil
}
