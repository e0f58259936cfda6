// Publishes to a file stream with RePublish through the Go client, asynchronously with a window, and receives what is
// republished with one core subscriber on a connection of its own. Prints one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sort"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	servers  = flag.String("servers", nats.DefaultURL, "addresses, with commas between them")
	replicas = flag.Int("replicas", 1, "copies of the stream")
	window   = flag.Int("window", 1024, "unacknowledged messages")
	subjects = flag.Int("subjects", 64, "subjects that the messages are spread over")
	size     = flag.Int("bytes", 128, "bytes of a message, at least 20")
	rate     = flag.Int("rate", 0, "messages a second; 0: as fast as the window allows")
	seconds  = flag.Float64("seconds", 2, "how long to publish")
)

type outcome struct {
	Messages   uint64  `json:"messages"`
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
}

func main() {
	flag.Parse()
	result, err := run()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func run() (outcome, error) {
	publishing, err := nats.Connect(*servers)
	if err != nil {
		return outcome{}, err
	}
	defer publishing.Close()
	subscribing, err := nats.Connect(*servers)
	if err != nil {
		return outcome{}, err
	}
	defer subscribing.Close()
	name := fmt.Sprintf("go%d", os.Getpid())
	failed := make(chan error, 1)
	js, err := jetstream.New(publishing, jetstream.WithPublishAsyncMaxPending(*window),
		jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, _ *nats.Msg, err error) {
			select {
			case failed <- err:
			default:
			}
		}))
	if err != nil {
		return outcome{}, err
	}
	limited, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err = js.CreateStream(limited, jetstream.StreamConfig{
		Name:        name,
		Subjects:    []string{name + ".log.>"},
		Storage:     jetstream.FileStorage,
		Replicas:    *replicas,
		AllowDirect: true,
		RePublish:   &jetstream.RePublish{Source: name + ".log.>", Destination: name + ".live.>"},
	})
	if err != nil {
		return outcome{}, err
	}
	defer func() { _ = js.DeleteStream(context.Background(), name) }()

	origin := time.Now()
	var count atomic.Uint64
	var micros []int64 // Appended to by the one subscription's goroutine; read when everything has arrived.
	subscription, err := subscribing.Subscribe(name+".live.>", func(message *nats.Msg) {
		if *rate > 0 {
			sent, _ := strconv.ParseInt(string(message.Data[:20]), 10, 64)
			micros = append(micros, time.Since(origin).Microseconds()-sent)
		}
		count.Add(1)
	})
	if err != nil {
		return outcome{}, err
	}
	if err := subscription.SetPendingLimits(-1, -1); err != nil {
		return outcome{}, err
	}
	if err := subscribing.Flush(); err != nil {
		return outcome{}, err
	}

	before, start := cpu(), time.Now()
	messages, err := publish(js, name, origin, start)
	if err != nil {
		return outcome{}, err
	}
	deadline := time.Now().Add(20 * time.Second)
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(time.Until(deadline)):
		return outcome{}, fmt.Errorf("%d messages are not acknowledged", js.PublishAsyncPending())
	}
	for count.Load() < messages {
		if time.Now().After(deadline) {
			return outcome{}, fmt.Errorf("%d of %d messages arrived", count.Load(), messages)
		}
		time.Sleep(time.Millisecond)
	}
	result := outcome{Messages: messages, Seconds: time.Since(start).Seconds(), CPUSeconds: (cpu() - before).Seconds()}
	select {
	case err := <-failed:
		return outcome{}, err
	default:
	}
	sort.Slice(micros, func(one, other int) bool { return micros[one] < micros[other] })
	if len(micros) > 0 {
		result.P50 = float64(micros[len(micros)/2]) / 1000
		result.P99 = float64(micros[len(micros)*99/100]) / 1000
	}
	return result, nil
}

// publish sends until the time is over; with a rate, what is due once in a millisecond.
func publish(js jetstream.JetStream, name string, origin, start time.Time) (uint64, error) {
	names := make([]string, *subjects)
	for number := range names {
		names[number] = fmt.Sprintf("%s.log.c.bench-%02d", name, number)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var sent, due uint64
	for time.Since(start).Seconds() < *seconds {
		if *rate > 0 && sent >= due {
			<-tick.C
			due = uint64(time.Since(start).Seconds() * float64(*rate))
			continue
		}
		data := make([]byte, *size)
		for place := copy(data, fmt.Sprintf("%020d", time.Since(origin).Microseconds())); place < len(data); place++ {
			data[place] = 'x'
		}
		sent++
		if _, err := js.PublishAsync(names[sent%uint64(len(names))], data, jetstream.WithStallWait(20*time.Second)); err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// cpu is the time of this process on CPUs, user and kernel together.
func cpu() time.Duration {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
