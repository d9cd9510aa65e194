package denials

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"nemoclaw/egress/control"
)

const (
	// burst is how many denials of a sandbox are told one by one, and every how
	// long another one is after that.
	burst = 100
	pace  = time.Second
	// Counts follow after minFold, and less and less often, at last every
	// maxFold, as long as there is something to count.
	minFold = time.Second / 2
	maxFold = time.Minute
	// maxQueue bounds what a monitor that does not read leaves here.
	maxQueue = 4 * burst
)

// quiet are calls that are refused all the time to programs that mean nothing
// by it: what a sandbox is not told of. Every thread that glibc or musl starts
// asks for clone3 first, and takes clone when it is told that there is none.
var quiet = map[string]bool{"clone3": true}

// sandbox is a monitor's conversation, and what it is to be told.
type sandbox struct {
	conn  *control.Conn
	watch control.Watch
	room  *rate.Limiter
	wake  chan struct{}

	mu    *sync.Mutex // the reader's; guards what follows
	told  control.Told
	due   bool          // the counts are to be told
	timer *time.Timer   // until they are; nil: there is nothing to count
	wait  time.Duration // how long it runs
	last  time.Time     // when they were told last
	ended bool
}

func newSandbox(mu *sync.Mutex, conn *control.Conn, w control.Watch) *sandbox {
	return &sandbox{conn: conn, watch: w, room: rate.NewLimiter(rate.Every(pace), burst), wake: make(chan struct{}, 1), mu: mu, wait: minFold}
}

// denied takes a denial, which is made only if there is room for it.
func (s *sandbox) denied(layer string, denial func() control.Denial) {
	if len(s.told.Denials) < maxQueue && s.room.Allow() {
		s.told.Denials = append(s.told.Denials, denial())
		return
	}
	if s.told.Folded == nil {
		s.told.Folded = map[string]int{}
	}
	s.told.Folded[layer]++
	s.countLater()
}

// countLater has the counts told after a while.
func (s *sandbox) countLater() {
	if s.timer != nil || s.due || s.ended {
		return
	}
	if time.Since(s.last) > 2*s.wait {
		s.wait = minFold
	}
	s.timer = time.AfterFunc(s.wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.due, s.timer = true, nil
		s.wakeUp()
	})
}

func (s *sandbox) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default: // it is awake already
	}
}

func (s *sandbox) wakeIfSome() {
	if len(s.told.Denials)+len(s.told.Domains)+len(s.told.Ended) > 0 {
		s.wakeUp()
	}
}

// end has everything told that is there.
func (s *sandbox) end() {
	s.ended = true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.wakeUp()
}

// send tells the monitor what there is, first that it is known, until the end
// or until it does not listen.
func (s *sandbox) send() {
	err := s.conn.Send(control.Told{})
	for ended := false; err == nil && !ended; {
		<-s.wake
		var told control.Told
		if told, ended = s.take(); len(told.Denials)+len(told.Domains)+len(told.Ended)+len(told.Folded)+told.Lost+told.Unknown > 0 {
			err = s.conn.Send(told)
		}
	}
	if err != nil {
		s.conn.Close() // serve waits for this
	}
}

// take returns what is to be told now.
func (s *sandbox) take() (now control.Told, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, s.told = s.told, control.Told{}
	if !s.due && !s.ended {
		s.told.Folded, s.told.Lost, s.told.Unknown = now.Folded, now.Lost, now.Unknown
		now.Folded, now.Lost, now.Unknown = nil, 0, 0
		return now, false
	}
	s.due, s.last, s.wait = false, time.Now(), min(2*s.wait, maxFold)
	return now, s.ended
}
