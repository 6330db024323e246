"""Questions about lessons 00 to 05: what distillation is for, what a teacher says, and how logits teach."""

from __future__ import annotations

from course.quiz.question import QuizQuestion, right, wrong

FOUNDATIONS = (
    QuizQuestion(
        "00",
        "fair_twin",
        "What is one run worth?",
        "You compare a distilled student with a twin that learns from hard labels. What would make the comparison "
        "unfair?",
        (
            wrong(
                "The student's loss has a second term, and the loss of the twin has none.",
                "That is what the two are meant to differ in. Everything else should be equal.",
            ),
            right(
                "The student got the best of five learning rates, and the twin the default.",
                "Then the tuning is measured together with the teacher. Equally many settings must be tried for both.",
            ),
            wrong(
                "The losses in the two tables have scales that cannot be compared.",
                "They cannot be, and they need not be: what is compared is the share of right answers.",
            ),
            wrong(
                "The teacher has seen far more labelled pictures than the two students.",
                "It has, and the student may profit from it: that is one thing a teacher is for. Say so in the report.",
            ),
        ),
    ),
    QuizQuestion(
        "01",
        "resolution",
        "How large are networks?",
        "A convolutional network with average pooling at its end is given pictures with twice as many pixels on each "
        "side. Which of its costs stays as it was?",
        (
            wrong(
                "The multiplications of one picture",
                "Each window is used at every position, and there are four times as many positions.",
            ),
            wrong(
                "The memory that its maps take",
                "Maps have the height and width of the picture, or a fixed share of it: four times as many numbers.",
            ),
            right(
                "The bytes of the file with its weights",
                "A window has as many weights as before, wherever it is applied. Resolution costs MACs, not "
                "parameters.",
            ),
            wrong(
                "The time that it needs for one picture",
                "Time does not follow MACs exactly, but with four times as many of them it grows.",
            ),
        ),
    ),
    QuizQuestion(
        "01",
        "one_call",
        "The third cost: time",
        "Somebody starts a clock, calls a network once with one picture, stops the clock, and reports 12 ms. What is "
        "wrong with it?",
        (
            right(
                "The first calls are slower than later ones, and one time has no spread.",
                "Hence a warm-up, many runs, and a median with the width of the middle half of them.",
            ),
            wrong(
                "The weights were random, and a trained network is faster than that.",
                "Time follows from the shapes of the layers. Random weights take the same time.",
            ),
            wrong(
                "One picture tells nothing: only batches of pictures can be timed at all.",
                "A camera hands over one picture after the other. Which batch is right depends on the use.",
            ),
            wrong(
                "The time of a network must be computed from its MACs and not be measured.",
                "A MAC has no fixed price: small layers and memory traffic cost time of their own.",
            ),
        ),
    ),
    QuizQuestion(
        "02",
        "zeros",
        "First way: weights become zero",
        "Nine of ten weights are set to zero, and the network is no faster with ordinary software. Why?",
        (
            wrong(
                "A zero takes more bytes in the file than the weight that stood there.",
                "It takes exactly as many, four in float32. Only a zipped file gets smaller.",
            ),
            wrong(
                "The software looks for zeros first, which takes longer than it saves.",
                "Ordinary kernels do not look for zeros at all.",
            ),
            wrong(
                "A network that guesses needs more steps until it has an answer.",
                "One forward pass has the same steps, whether its answer is right or wrong.",
            ),
            right(
                "The layers keep their shapes, and a product with zero is computed too.",
                "MACs follow from shapes. Time falls if whole channels go, or if kernels know how to leave zeros out.",
            ),
        ),
    ),
    QuizQuestion(
        "02",
        "round_then_train",
        "Few bits, trained",
        "You want weights of few bits and the help of a teacher. Why not round the weights first, and then "
        "distil in the usual way?",
        (
            wrong(
                "Rounded weights have no gradient, so the optimiser stops with an error.",
                "They are ordinary float numbers with few values. Gradients exist, and nothing stops.",
            ),
            right(
                "The first ordinary step moves the weights away from their few values.",
                "After it the network is a float network again. The rounding has to be part of each forward "
                "pass (QAT).",
            ),
            wrong(
                "A teacher in float32 cannot be compared with a student of four bits.",
                "Logits are compared, and both networks give those as ordinary numbers.",
            ),
            wrong(
                "To round after the training gives a better network at any number of bits.",
                "At 8 bits there is nothing to lose. With 2 bits the rounded network guesses: new batch norm brings a "
                "part of it back, and training with the rounding in it far more.",
            ),
        ),
    ),
    QuizQuestion(
        "03",
        "smoothing_lacks",
        "What looks alike to a teacher",
        "Label smoothing gives a student soft labels as well. What do those of a teacher hold that smoothing cannot?",
        (
            wrong(
                "A share above zero for each of the classes that are wrong",
                "Smoothing gives that too: the same small share to each of them.",
            ),
            wrong(
                "A target that keeps the student from being completely sure",
                "Smoothing does the same. It needs no teacher.",
            ),
            right(
                "How much this picture resembles each of the other classes",
                "A shirt that is nearly a coat gets another answer than one that is nearly a T-shirt.",
            ),
            wrong(
                "A guarantee that the class with the largest share is right",
                "Nobody gives that. A teacher errs, and may be sure of it.",
            ),
        ),
    ),
    QuizQuestion(
        "03",
        "never_seen",
        "What taught it?",
        "Soft labels teach a student to recognise a class that none of its pictures is labelled with. Which "
        "further run shows that this came from what the teacher says?",
        (
            right(
                "The same student with label smoothing in place of the teacher",
                "Its targets are soft as well, and give the missing class a share. It learns practically "
                "nothing of it.",
            ),
            wrong(
                "A larger student with the same soft labels of the same teacher",
                "It may find more, but it says nothing about where the knowledge comes from.",
            ),
            wrong(
                "The same student with the missing pictures put back in place",
                "That shows how much there is to win, and not what the teacher contributed.",
            ),
            wrong(
                "The teacher itself, on test pictures of the class that is missing",
                "It was trained on this class. That it knows it is the condition, not the proof.",
            ),
        ),
    ),
    QuizQuestion(
        "04",
        "without_square",
        "Why T² is there",
        "The factor T^2 is missing in a loss. Its user raises T from 4 to 20 and leaves alpha alone. What "
        "happens beside the softening?",
        (
            wrong(
                "Nothing: the factor changes the printed value of the loss and no more.",
                "It multiplies the gradient as well, and the gradient is what the student learns by.",
            ),
            wrong(
                "The gradient of the hard loss grows until both parts are in balance.",
                "The hard loss has no temperature. Its gradient stays.",
            ),
            wrong(
                "The softened answers put the classes into another order than before.",
                "The order of the classes is the same at every temperature.",
            ),
            right(
                "The teacher's pull becomes far weaker, as if alpha had been raised.",
                "At high T the gradient shrinks as 1/T^2. Who turns T also turns the teacher down, unless T^2 "
                "is there.",
            ),
        ),
    ),
    QuizQuestion(
        "04",
        "epsilon",
        "The soft loss, without infinities",
        "log(softmax(z)) gives -inf for a student that is sure and wrong. A colleague adds 1e-8 before the logarithm, "
        "and the -inf is gone. What is still wrong?",
        (
            wrong(
                "The probabilities now add up to more than 1, so each loss is negative.",
                "They add up to a trifle more, which is not what hurts.",
            ),
            right(
                "Where a probability was rounded to 0, the student gets no gradient.",
                "It is most wrong just there. log_softmax computes the logarithm in one step and keeps the gradient.",
            ),
            wrong(
                "PyTorch's softmax overflows for large logits, whatever is added later.",
                "It takes off the largest logit first. Overflow is the mistake of the formula written by hand.",
            ),
            wrong(
                "The temperature has no effect any more, since 1e-8 does not depend on it.",
                "The logits are still divided by it.",
            ),
        ),
    ),
    QuizQuestion(
        "05",
        "alpha_zero",
        "What the mistakes cost",
        "Why is a short training with alpha = 0, without any labels, a good test of a distillation script?",
        (
            wrong(
                "It is the best setting, since a teacher knows more than the labels do.",
                "It may be as good as others, as the map of lesson 05 shows. It is not the best by some law.",
            ),
            wrong(
                "It measures how often the teacher is right without evaluating it.",
                "A student is not its teacher: it may stay behind it. Evaluating the teacher is easier and exact.",
            ),
            right(
                "Labels cannot hide bad answers: the student shows what it was told.",
                "A teacher that was mostly wrong cost nothing that showed at alpha = 0.5, and 34 points at 0.",
            ),
            wrong(
                "It takes half of the time, because the hard loss is not computed.",
                "The hard loss costs next to nothing. Time is spent in the networks.",
            ),
        ),
    ),
    QuizQuestion(
        "05",
        "other_pictures",
        "Mistake 2: the answers of other pictures",
        "Stored answers of a teacher may belong to other pictures than those in the batch, in tensors of the "
        "right shape. Which check finds that at once?",
        (
            right(
                "Do the answers name the batch's labels as often as the teacher is right?",
                "For answers of other pictures the agreement falls to about chance.",
            ),
            wrong(
                "Does the loss fall? With the answers of other pictures it would stay level.",
                "It falls: a student can learn how often each class occurs, and the labels go on teaching.",
            ),
            wrong(
                "Is the teacher less sure than before? Other pictures make it undecided.",
                "The answers themselves are what they were. Only their places are wrong.",
            ),
            wrong(
                "Are there as many answers as pictures? Mixed-up ones leave some without.",
                "There are as many. Each picture has an answer, and it is somebody else's.",
            ),
        ),
    ),
)
